"""Labels photos with a trained annotator: a few images in memory, or any number of files."""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from aia_jax.data.annotation.annotations import read_labels
from aia_jax.data.annotation.datasets import read_vocabulary
from aia_jax.data.image_decoding import decode_image, resize_image
from aia_jax.data.photo_folder import read_photos
from aia_jax.data.words.label_texts import read_label_texts
from aia_jax.inference.open_vocabulary import OpenVocabulary, load_open_vocabulary
from aia_jax.inference.sentence_search import SentenceSearch
from aia_jax.inference.thumbnails import Thumbnail
from aia_jax.inference.trained_dual_encoder import is_dual_encoder
from aia_jax.metrics.thresholds import load_thresholds
from aia_jax.models.annotator import build_annotator
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.training.prediction import fetch_outputs
from aia_jax.utils.config import read_config
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json
from aia_jax.utils.model_folders import OPEN, find_model
from aia_jax.utils.paths import local_path
from aia_jax.weights.load import load_arrays, model_shapes

Labels = tuple[tuple[str, float], ...]  # pairs of a label and its score, in descending order of score
_MAX_MAPS = 24  # maximum number of attention maps of a thumbnail
OneImage = str | os.PathLike | Image.Image | np.ndarray


class Annotation(NamedTuple):
    """The outputs of a model with C labels for N images.

    Attributes:
        labels: for each image, its selected labels as pairs (label, score), in descending order of score.
        scores: float32 `[N, C]`, 0 to 1, for every label in the order of `PhotoAnnotator.labels`.
        attention: float32 `[N, C, h, w]`, the attention map of each label; None if the head has no attention.
    """

    labels: tuple[Labels, ...]
    scores: np.ndarray
    attention: np.ndarray | None


class AnnotatedPhoto(NamedTuple):
    """The labels of a file and, if requested, a thumbnail with the attention maps of the labels."""

    labels: Labels
    picture: Thumbnail | None


class PhotoAnnotator:
    """Labels photos: computes the scores of all labels, and selects labels by their scores.

    Args:
        annotator: the model that computes the scores.
        threshold: one number for all labels, or `[C]`. A label is selected if its score is above its threshold.
        top: maximum number of labels for an image; None: no maximum.

    Attributes:
        labels: the vocabulary, C label names.
        image_size: side S of the decoded photos in pixels.
        batch_size: number of photos in a batch.
    """

    def __init__(
        self, annotator: TrainedAnnotator | OpenVocabulary, threshold: float | np.ndarray, top: int | None = None
    ):
        self._annotator, self._top = annotator, top
        self.labels = annotator.labels
        self.image_size, self.batch_size = annotator.image_size, annotator.batch_size
        self._thresholds = np.broadcast_to(np.asarray(threshold, np.float32), len(self.labels))

    @property
    def digest(self) -> str:
        """Text that identifies `settings`."""
        return hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the labels of a photo: model, vocabulary, thresholds and `top`."""
        return {
            "model": self._annotator.settings,
            "labels": self.labels,
            "thresholds": self._thresholds.tolist(),
            "top": self._top,
        }

    def sentence_search(self) -> SentenceSearch:
        """Returns a search with the same model. Raises InputError if the model knows labels, but no sentences."""
        if not isinstance(self._annotator, OpenVocabulary):
            raise InputError(f"this model knows labels, but no sentences; name a dual encoder, such as {OPEN}")
        return SentenceSearch(self._annotator.encoder)

    def __call__(self, images: OneImage | Sequence[OneImage]) -> Annotation:
        """Annotates images. Pass at most a few hundred images in one call, because their attention maps take memory.

        Args:
            images: one or more paths, PIL images, or uint8 arrays `[H, W, 3]` or `[H, W]`. EXIF orientation is applied.

        Raises InputError if an image cannot be read. The message names the image.
        """
        is_one = isinstance(images, OneImage) and not (isinstance(images, np.ndarray) and images.ndim > 3)
        given = [images] if is_one else list(images)
        size, batch_size = self._annotator.image_size, self.batch_size
        with ThreadPoolExecutor() as pool:
            decoded = list(pool.map(lambda pair: _decode(*pair, size), enumerate(given)))
        rows = np.asarray(decoded, np.uint8).reshape(-1, size, size, 3)
        batches = (rows[start : start + batch_size] for start in range(0, len(rows) or 1, batch_size))
        dispatched = ((len(batch), self._annotator.predict(batch, explain=True)) for batch in batches)
        found = [
            {name: values[:number] for name, values in outputs.items()} for number, outputs in fetch_outputs(dispatched)
        ]
        outputs = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
        return Annotation(self._select(outputs["scores"]), outputs["scores"], outputs.get("attention"))

    def annotate(
        self, paths: Sequence[str | Path], num_workers: int, *, picture_side: int = 0
    ) -> Iterator[list[AnnotatedPhoto | str]]:
        """Annotates files in order. Only a few batches are in memory. Close the iterator after use.

        Args:
            num_workers: number of threads that decode the files; 0: one for each core.
            picture_side: longer side of the thumbnails in pixels; 0: no thumbnails.

        Yields:
            A list for each batch. It has an item for each file: an `AnnotatedPhoto`, or the reason why the file cannot
            be read.

        Raises:
            InputError: the model returns scores that are not finite.
        """
        size = self._annotator.image_size
        options = {"upright": True, "draft": True, "picture_side": picture_side}
        reading = read_photos(paths, size, num_workers=num_workers, **options)
        with contextlib.closing(reading) as photos:
            predict = self._annotator.illustrate if picture_side else self._annotator.predict
            batches = iter(lambda: list(itertools.islice(photos, self.batch_size)), [])
            dispatched = ((batch, predict(np.stack([photo.image for photo in batch]))) for batch in batches)
            for batch, outputs in fetch_outputs(dispatched):
                labels = self._select(outputs["scores"][: len(batch)])
                heat = outputs.get("heat", itertools.repeat(None))
                yield [
                    photo.problem or AnnotatedPhoto(selected, self._thumbnail(photo.picture, selected, maps))
                    for photo, selected, maps in zip(batch, labels, heat, strict=False)
                ]

    def compute(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Labels b decoded photos, uint8 `[b, S, S, 3]`. Returns `labels`, `[b]` objects of type `Labels`."""
        scores = np.asarray(self._annotator.predict(images)["scores"])[: len(images)]
        labels = np.empty(len(images), object)
        labels[:] = self._select(scores)
        return {"labels": labels}

    def _thumbnail(self, webp: bytes, labels: Labels, maps: np.ndarray | None) -> Thumbnail | None:
        if not webp or maps is None:
            return Thumbnail(webp) if webp else None
        names = tuple(name for name, _ in labels[:_MAX_MAPS])
        return Thumbnail(webp, names, maps[[self.labels.index(name) for name in names]])

    def _select(self, scores: np.ndarray) -> tuple[Labels, ...]:
        if not np.isfinite(scores).all():
            raise InputError("the model gives scores that are not finite; its weights are damaged or diverged")
        found = []
        for row in scores:
            order = np.argsort(-row, kind="stable")
            selected = order[row[order] > self._thresholds[order]][: self._top]
            # float(str(...)) is the number with the fewest digits that rounds to the same float32.
            found.append(tuple((self.labels[label], float(str(row[label]))) for label in selected))
        return tuple(found)


def load_trained_annotator(
    source: str | Path,
    config: ConfigDict | str | Path | None = None,
    *,
    labels: str | Path | Sequence[str] | None = None,
    batch_size: int = 32,
    dtype: str | None = None,
    fold: bool = True,
) -> TrainedAnnotator | OpenVocabulary:
    """Loads the model of an annotator for `aia_jax.load`.

    Args:
        source, config, labels, batch_size: see `aia_jax.load`.
        dtype: dtype of the computation; None: `config.model.dtype`.
        fold: see `TrainedAnnotator`.

    Raises InputError if an argument cannot be used. The message gives the reason.
    """
    source = local_path(source)
    labels = local_path(labels) if isinstance(labels, str | os.PathLike) else labels
    if config is None:
        source = find_model(source)
        if not source.is_dir():
            raise InputError(f"{source} is no folder of a model or a run; a weights file needs its config too")
        if is_dual_encoder(source):
            return load_open_vocabulary(source, labels, batch_size)
        words = None if labels is None else read_label_texts(labels)
        return TrainedAnnotator.from_run(source, batch_size, dtype, fold=fold, words=words)
    config = config.copy_and_resolve_references() if isinstance(config, ConfigDict) else read_config(str(config))
    if config.get("task") != "annotation":
        raise InputError(f"config.task={config.get('task')!r} is no annotator; name an annotation config")
    if dtype:
        config.model.dtype = dtype
    try:
        names = read_vocabulary(config.data) if labels is None else read_labels(labels)
    except InputError as error:
        advice = "" if labels else "; without the data, --labels names a file of the labels"
        raise InputError(f"{error}{advice}") from None
    shapes = model_shapes(lambda rngs: build_annotator(config.model, len(names), rngs=rngs))
    arrays = load_arrays(source, config, shapes, {"labels": list(names)})
    return TrainedAnnotator(config, names, arrays, batch_size, fold=fold)


def check_threshold(given: float | str | Path | None, source: str | Path) -> float | Path | None:
    """Returns the threshold, or the path of a thresholds file. `given` and `source` are arguments of `aia_jax.load`.

    Raises InputError if the threshold is not from 0 to 1, or if the file cannot be read. Does not load the model.
    """
    default = local_path(source) / "thresholds.json"
    given = default if given is None and os.path.lexists(default) else given
    if isinstance(given, str | Path):
        read_json(local_path(given), "{label: threshold}")
        return local_path(given)
    if given is not None and not 0 <= given <= 1:
        raise InputError(f"the threshold must lie in 0..1, not {given}")
    return given


def read_thresholds(given: float | Path | None, annotator: TrainedAnnotator | OpenVocabulary) -> float | np.ndarray:
    """Returns one threshold for all labels, or `[C]`. `given` is a result of `check_threshold`.

    A thresholds file is for the trained labels. The threshold of added labels is then `config.eval.threshold`.

    Raises InputError if the thresholds file is for other labels.
    """
    default = annotator.threshold
    if isinstance(given, Path):
        trained = annotator.trained_labels
        known = dict(zip(trained, load_thresholds(given, trained), strict=True))
        return np.array([known.get(label, default) for label in annotator.labels])
    return default if given is None else given


def _decode(number: int, image: OneImage, size: int) -> np.ndarray:
    try:
        if isinstance(image, Image.Image):
            return resize_image(image, size, upright=True)
        if isinstance(image, np.ndarray):
            right = image.dtype == np.uint8 and image.ndim in (2, 3) and image.shape[2:] in ((), (3,)) and image.size
            if not right:
                found = f"{image.dtype} {list(image.shape)}"
                raise InputError(f"an array must be uint8 [H, W, 3] or [H, W], found {found}")
            return resize_image(Image.fromarray(image), size)
        if not isinstance(image, str | os.PathLike):
            raise InputError(f"must be a path, a PIL image or an array, found {type(image).__name__}")
        return decode_image(Path(image).read_bytes(), size, upright=True, draft=True)
    except (InputError, OSError, ValueError) as error:  # ValueError: a closed PIL image
        name = image if isinstance(image, str | os.PathLike) else f"images[{number}]"
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: {reason}") from None
