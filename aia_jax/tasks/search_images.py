"""Images with labels as image search takes them: label words are queries, an annotator makes maps and keywords."""

import functools

import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.annotation.annotations import CUSTOM
from aia_jax.data.annotation.datasets import Split, load_split, split_validation
from aia_jax.data.search.batches import SearchImages
from aia_jax.data.search.queries import label_queries
from aia_jax.data.vocabulary import pad_ids
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.utils.errors import InputError


class AnnotatedImages:
    """The splits of an annotated data set.

    `validation` is a part of the training split, which `train` then lacks, when `config.eval.split` is "validation".

    Args:
        config: of image search.

    Attributes:
        keyword_quality: of each split that was loaded, precision and recall of its predicted keywords.

    Raises:
        InputError: no annotator is named, or one that cannot be used.
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
        """What makes maps and keywords."""
        found = TrainedAnnotator.from_run(self._data.annotator, self._config.eval.batch_size)
        self._check_parts(found.config)
        return found

    @property
    def caveat(self) -> str:
        """What a reader of the numbers must know of the annotator's training; "": nothing."""
        there = self.annotator.config
        shared = there.data.name == self._data.name and self._config.eval.split == "validation"
        return "the annotator was trained on the validation images too" if shared and there.eval.split == "test" else ""

    @property
    def digest(self) -> str:
        """Tells the annotator from others."""
        return self.annotator.digest

    @functools.cached_property
    def keyword_names(self) -> tuple[str, ...]:
        """The keywords, by id."""
        return self.annotator.labels if self._data.keywords == "annotator" else self._whole_train.labels

    def load(self, name: str) -> SearchImages:
        """The images of "train", "validation" or "test", and all queries that are right for one of them.

        Raises:
            InputError: there is no such part, or its images cannot be used.
        """
        images, data = self._images(name), self._data
        maps = self.annotator.maps_of(images.images, data.feature_dtype)
        if data.keywords == "annotator":
            found = self.annotator.keywords_of(maps, data.keyword_threshold)
            chosen = [own[: data.max_keywords] for own in found]
            self.keyword_quality[name] = _quality(chosen, self.annotator.labels, images)
        else:
            chosen = [np.flatnonzero(row).astype(np.int32) for row in images.targets]
        queries = label_queries(images.targets, images.labels, data.query_words)
        return SearchImages(maps, *pad_ids(chosen, data.max_keywords), queries, images.images)

    def _check_parts(self, there: ConfigDict) -> None:
        """Raises InputError if the annotator was trained on some of our validation images, its own being others."""
        data = self._data
        if there.data.name != data.name or {there.eval.split, self._config.eval.split} != {"validation"}:
            return
        own = {"split_seed": data.split_seed, "validation_fraction": data.validation_fraction}
        theirs = {"split_seed": there.seed, "validation_fraction": there.data.validation_fraction}
        if own != theirs:
            wanted = ", ".join(f"config.data.{name}={value}" for name, value in theirs.items())
            raise InputError(f"{data.annotator} was trained on other parts of {data.name}: set {wanted}")

    def _images(self, name: str) -> Split:
        if name == "test":
            return load_split(self._data, "test", self.annotator.image_size)
        if self._config.eval.split == "validation":
            data = self._data
            parts = split_validation(
                self._whole_train, data.validation_fraction, data.split_seed, stratified=data.name == CUSTOM
            )
            return parts[("train", "validation").index(name)]
        if name == "validation":
            raise InputError("this config has no validation part: config.eval.split is 'test'")
        return self._whole_train

    @functools.cached_property
    def _whole_train(self) -> Split:
        return load_split(self._data, "train", self.annotator.image_size)


def _quality(chosen: list[np.ndarray], names: tuple[str, ...], images: Split) -> tuple[float, float]:
    """Precision and recall of keywords, ids of `names`, among the images' labels."""
    carried = [{images.labels[label] for label in np.flatnonzero(row)} for row in images.targets]
    pairs = zip(carried, chosen, strict=True)
    right = sum(len(labels.intersection(names[word] for word in own)) for labels, own in pairs)
    return right / max(sum(map(len, chosen)), 1), right / max(sum(map(len, carried)), 1)
