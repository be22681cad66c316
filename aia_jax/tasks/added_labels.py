"""Adds labels to a trained annotator with the head "text": labels that it was not trained on, given by their names."""

from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.words.imagenet import imagenet_classes
from aia_jax.data.words.label_texts import LabelTexts
from aia_jax.models.text_head import OpenTextHead, TextHead, is_filled
from aia_jax.tasks.text_encoder import TextEncoder
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import format_count
from aia_jax.weights.packages import PACKAGES, package_parts

_FEWEST_REFERENCES = 16  # of which mean and standard deviation are computed


class AddedLabels:
    """Labels for a trained annotator. Labels with the name of a trained label keep the scores of the trained label.

    Args:
        config: config of the run that trained the annotator.
        trained: the C labels of the run.
        arrays: all arrays of the annotator, `{path: array}`.
        words: M labels with texts.

    Attributes:
        columns: number of each of the M labels among the trained labels, or -1, int `[M]`.

    Raises:
        InputError: the head or the backbone of the annotator does not allow other labels, a label has no known word, or
            a package is missing.
    """

    def __init__(self, config: ConfigDict, trained: Sequence[str], arrays: Mapping[str, np.ndarray], words: LabelTexts):
        _check_head(config, len(trained), arrays)
        self._classifier = _read_classifier(config.model.backbone, arrays)
        places = {label: place for place, label in enumerate(trained)}
        self.columns = np.array([places.get(name, -1) for name in words.names])
        added = [text for text, column in zip(words.texts, self.columns, strict=True) if column < 0]
        encoder = TextEncoder(config.data.cache_dir)
        encoder.tokenizer.check_words(added, "label")
        self._classes = encoder.encode([entry.text for entry in imagenet_classes()])["sentence"]
        self._embeddings = np.zeros((len(self.columns), self._classes.shape[1]), np.float32)
        if added:
            self._embeddings[self.columns < 0] = encoder.encode(added)["sentence"]

    def open_head(self, head: TextHead) -> OpenTextHead:
        """Returns the head that scores the M labels. `head` is the trained head."""
        return OpenTextHead(head, self._classifier, self._classes, self._embeddings, self.columns)


def _check_head(config: ConfigDict, num_labels: int, arrays: Mapping[str, np.ndarray]) -> None:
    if config.model.head != "text":
        raise InputError(
            f"this model, with config.model.head={config.model.head!r}, knows only its own "
            f"{format_count(num_labels, 'label')}; to add labels, train with --config corel5k_lite:text or custom:text"
        )
    if (found := int(is_filled(arrays["head.references"]).sum())) < _FEWEST_REFERENCES:
        raise InputError(
            f"this model keeps the features of {format_count(found, 'training image')}, and other labels need at least "
            f"{_FEWEST_REFERENCES}; train it for more steps"
        )


def _read_classifier(backbone: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias of the ImageNet classifier. Raises InputError if it was trained for another backbone."""
    known = ", ".join(PACKAGES)
    if backbone not in PACKAGES:
        raise InputError(f"other labels need the ImageNet classifier of the backbone; {backbone} has none, but {known}")
    parts = package_parts(backbone)
    if not all(np.array_equal(arrays.get(path), value) for path, value in parts["backbone"].items()):
        raise InputError(
            f"other labels need the backbone {backbone} as it is in the package {PACKAGES[backbone]}, but training "
            "changed it, or another version is installed; train with config.model.freeze_backbone=True and "
            f"config.init_backbone={backbone}"
        )
    return parts["head"]["head.linear.kernel"], parts["head"]["head.linear.bias"]
