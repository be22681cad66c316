"""Labels photos with any words, without training for these words.

The score of a label c on an image is a probability, the larger one of two:

1. A logistic regression on three numbers:

       sigmoid(w . (agreement_c, cos(image vector, vector of "a c"), z_c) + b)

   The agreement (`models.conse.class_agreement`) compares the label with the image's ImageNet classes. The cosine is
   that of the dual encoder. z_c is ConSE's log score, standardised over reference images. `calibrate` fits w and b to
   the captions of a validation split: the score estimates the probability that a caption of the photo mentions the
   label.
2. For a word that many training captions mention, such as "person" or "water": a linear classifier on the image
   vector; see `inference.caption_words`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aia_jax.data.feature_cache import weights_digest
from aia_jax.data.retrieval.photo_captions import CaptionedPhotos
from aia_jax.data.words.label_texts import LabelTexts, everyday_labels, read_label_texts
from aia_jax.data.words.mentions import mentions
from aia_jax.inference.caption_words import CaptionWords, fit_caption_words
from aia_jax.inference.stored_texts import class_embeddings, label_embeddings
from aia_jax.inference.trained_dual_encoder import TrainedDualEncoder
from aia_jax.models.conse import class_agreement, class_probabilities, conse_scores, label_statistics
from aia_jax.training import sharding
from aia_jax.training.runs import config_errors_as_input_errors
from aia_jax.utils.errors import InputError

REFERENCE = "open_vocabulary.log_classes"  # path in a model folder: log probabilities of the reference images
_REFERENCE_IMAGES = 256
_THRESHOLD = 0.5  # a label is selected if a caption more likely mentions it than not


class OpenVocabulary:
    """Scores any labels on photos. Has the methods of `TrainedAnnotator` that `PhotoAnnotator` needs.

    Args:
        encoder: a dual encoder with the arrays and facts of `calibrate`.
        labels: C labels.

    Attributes:
        labels: the names of the C labels.
        encoder: the argument `encoder`.

    Raises:
        InputError: a label has no known word.
    """

    def __init__(self, encoder: TrainedDualEncoder, labels: LabelTexts):
        self.encoder, self._calibration = encoder, encoder.facts["open_vocabulary"]
        self.labels, self._texts = self.trained_labels, _ = labels
        self.image_size, self.batch_size, self.threshold = encoder.image_size, encoder.batch_size, _THRESHOLD
        words = CaptionWords.load(encoder.others, self._calibration["words"], encoder.config.model.embed_size)
        reference = encoder.others[REFERENCE]
        self._constants = jax.device_put((label_constants(encoder, labels, reference), words.of_labels(self.labels)))
        weights, bias = (np.asarray(self._calibration[name], np.float32) for name in ("weights", "bias"))
        if weights.shape != (3,) or bias.shape != ():
            raise ValueError("`weights` must be three numbers and `bias` one")

        def score(constants: tuple, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
            of_labels, (word_weights, word_bias) = constants
            logits = features(outputs, *of_labels) @ weights + bias
            of_words = outputs["vectors"] @ word_weights + word_bias
            return {"scores": jax.nn.sigmoid(jnp.maximum(logits, of_words))}

        self._score = jax.jit(score, out_shardings=sharding.replicated(sharding.data_mesh()))

    @property
    def settings(self) -> dict[str, Any]:
        """All values, other than the images, that determine the scores."""
        others = weights_digest(self.encoder.others)
        return {"weights": self.encoder.digest, "others": others, "texts": self._texts, **self._calibration}

    def predict(self, images: np.ndarray, *, explain: bool = False) -> dict[str, jax.Array]:
        """Starts the computation of `scores` float32 `[batch_size, C]`; see `TrainedAnnotator.predict`.

        There is no attention, so `explain` changes nothing.
        """
        return self._score(self._constants, self.encoder.encode_images(images))

    illustrate = predict


def load_open_vocabulary(folder: Path, labels: Path | Sequence[str] | None, batch_size: int) -> OpenVocabulary:
    """Loads a model folder of a dual encoder for `aia_jax.load`.

    `labels` is a file with a label per line, or a list: `name` or `name: definition`. None: the everyday vocabulary.

    Raises InputError if the folder cannot label photos, or a label has no known word.
    """
    encoder = TrainedDualEncoder.load(folder, batch_size)
    if REFERENCE not in encoder.others:
        raise InputError(
            f"{folder} can search photos, but not label them: it lacks the calibration, which `aia package` writes for "
            "a dual encoder with the feature 'classes' in config.model.image_features"
        )
    texts = everyday_labels() if labels is None else read_label_texts(labels)
    with config_errors_as_input_errors(folder):
        return OpenVocabulary(encoder, texts)


def calibrate(
    encoder: TrainedDualEncoder, train: CaptionedPhotos, validation: CaptionedPhotos
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fits the scores of the everyday vocabulary to captions.

    A label counts as true for a photo if one of its captions mentions the label; see `data.words.mentions`.

    Args:
        encoder: a dual encoder with ImageNet's classes.
        train: photos and captions, to which the words of captions are fitted.
        validation: photos and captions, to which the regression is fitted.

    Returns:
        Arrays and facts for a model folder.

    Raises:
        InputError: the captions mention no label.
    """
    from sklearn.linear_model import LogisticRegression

    labels = everyday_labels()
    mentioned = mentions(labels.names, validation)
    if not mentioned.any():
        raise InputError("the captions of the validation split mention no word of the everyday vocabulary")
    outputs, trained = (encoder.encode_split(part.images) for part in (validation, train))
    images = outputs["log_classes"]
    if len(images) < _REFERENCE_IMAGES:  # few images have accidental statistics
        images = np.concatenate([images, trained["log_classes"]])
    reference = images[np.linspace(0, len(images) - 1, min(len(images), _REFERENCE_IMAGES)).astype(int)]
    constants = label_constants(encoder, labels, reference)
    inputs = np.asarray(features(outputs, *constants)).reshape(-1, 3)
    fitted = LogisticRegression(C=10, max_iter=1000).fit(inputs, mentioned.ravel())
    words = fit_caption_words(trained["vectors"], mentions(labels.names, train), labels.names)
    calibration = {"weights": fitted.coef_[0].tolist(), "bias": float(fitted.intercept_[0]), "words": words.names}
    return {REFERENCE: reference.astype(np.float16), **words.arrays()}, {"open_vocabulary": calibration}


def label_constants(encoder: TrainedDualEncoder, labels: LabelTexts, reference: np.ndarray) -> tuple[Any, ...]:
    """Computes the arguments of `features` for C labels.

    Returns:
        The agreement and ConSE's score of each label with each class, both `[1000, C]`; the vectors of the labels in
        the dual encoder, `[C, D]`; and the result of `label_statistics`, twice `[C]`.
    """
    classes, (texts, vectors) = class_embeddings(encoder), label_embeddings(encoder, labels)
    each = np.eye(len(classes), dtype=np.float32)  # the scores of an image are sums over its classes
    statistics = label_statistics(_tempered(reference), classes, texts)
    return class_agreement(each, classes, texts), conse_scores(each, classes, texts), vectors, *statistics


def features(
    outputs: dict[str, Any], agreement: Any, similarity: Any, vectors: Any, mean: Any, deviation: Any
) -> jax.Array:
    """Computes the three numbers of each label on each image, `[N, C, 3]`.

    Args:
        outputs: `vectors` `[N, D]` and `log_classes` `[N, 1000]` of N images.
        agreement, similarity, vectors, mean, deviation: result of `label_constants`.
    """
    agreed = class_probabilities(outputs["log_classes"], 1.0) @ agreement
    scores = jnp.log(_tempered(outputs["log_classes"]) @ similarity)
    return jnp.stack([agreed, outputs["vectors"] @ vectors.T, (scores - mean) / deviation], axis=-1)


def _tempered(log_classes: Any) -> jax.Array:
    """Returns ConSE's probabilities. The logarithms of probabilities are logits up to a constant."""
    return class_probabilities(jnp.asarray(log_classes, jnp.float32))
