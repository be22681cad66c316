"""Annotated images for image search: labels give the queries, an annotator gives feature maps and keywords."""

import functools

import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.annotation.datasets import Split
from aia_jax.data.search.queries import SearchImages, label_queries
from aia_jax.data.vocabulary import pad_ids
from aia_jax.tasks.annotated_splits import AnnotatedSplits
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.utils.errors import InputError


class AnnotatedImages:
    """Loads the splits of an annotated data set for image search.

    Args:
        config: config of image search.

    Attributes:
        keyword_quality: precision and recall of the predicted keywords of each loaded split.

    Raises:
        InputError: no annotator is named.
    """

    def __init__(self, config: ConfigDict):
        self._config, self._data = config, config.data
        self.keyword_quality: dict[str, tuple[float, float]] = {}
        if not self._data.annotator:
            raise InputError(
                "config.data.annotator: name the folder of an annotation run, whose backbone makes the maps of images; "
                "train.py --config configs/demo.py makes one for the scenes"
            )

    @functools.cached_property
    def annotator(self) -> TrainedAnnotator:
        """The annotator that computes feature maps and keywords."""
        found = TrainedAnnotator.from_run(self._data.annotator, self._config.eval.batch_size)
        self._check_parts(found.config)
        return found

    @property
    def caveat(self) -> str:
        """A warning about the annotator's training data; "" if there is none."""
        there = self.annotator.config
        shared = there.data.name == self._data.name and self._config.eval.split == "validation"
        return "the annotator was trained on the validation images too" if shared and there.eval.split == "test" else ""

    @property
    def digest(self) -> str:
        """Digest of the annotator's weights and settings."""
        return self.annotator.digest

    @functools.cached_property
    def keyword_names(self) -> tuple[str, ...]:
        """The keywords in the order of their ids."""
        return self.annotator.labels if self._data.keywords == "annotator" else self._splits.whole_train.labels

    def load(self, name: str) -> SearchImages:
        """Loads the images of "train", "validation" or "test", and the queries that are relevant to any of them.

        Raises:
            InputError: there is no such split, or its images cannot be used.
        """
        images, data = self._splits.load(name), self._data
        maps = self.annotator.cached_maps(images.images, data.feature_dtype)
        if data.keywords == "annotator":
            found = self.annotator.keywords(maps, data.keyword_threshold)
            chosen = [own[: data.max_keywords] for own in found]
            self.keyword_quality[name] = _quality(chosen, self.annotator.labels, images)
        else:
            chosen = [np.flatnonzero(row).astype(np.int32) for row in images.targets]
        queries = label_queries(images.targets, images.labels, data.query_words)
        return SearchImages(maps, *pad_ids(chosen, data.max_keywords), queries, images.images)

    def _check_parts(self, there: ConfigDict) -> None:
        """Raises InputError if annotator and search have different validation parts of the same data set."""
        data = self._data
        if there.data.name != data.name or {there.eval.split, self._config.eval.split} != {"validation"}:
            return
        ours = {"split_seed": data.split_seed, "validation_fraction": data.validation_fraction}
        theirs = {"split_seed": there.seed, "validation_fraction": there.data.validation_fraction}
        if ours != theirs:
            wanted = ", ".join(f"config.data.{name}={value}" for name, value in theirs.items())
            raise InputError(f"{data.annotator} was trained on other parts of {data.name}: set {wanted}")

    @functools.cached_property
    def _splits(self) -> AnnotatedSplits:
        return AnnotatedSplits(self._config, self.annotator.image_size, self._data.split_seed)


def _quality(chosen: list[np.ndarray], names: tuple[str, ...], images: Split) -> tuple[float, float]:
    """Returns precision and recall of keywords, ids of `names`, compared with the labels of the images."""
    true = [{images.labels[label] for label in np.flatnonzero(row)} for row in images.targets]
    pairs = zip(true, chosen, strict=True)
    hits = sum(len(labels.intersection(names[keyword] for keyword in own)) for labels, own in pairs)
    return hits / max(sum(map(len, chosen)), 1), hits / max(sum(map(len, true)), 1)
