"""Reads the imported labels of a run, and the features of the imported photos, which `aia train` cached."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from aia_jax.data.annotation.annotations import read_annotations
from aia_jax.data.annotation.datasets import Split, photo_paths
from aia_jax.data.feature_cache import FLIPS, prepare_pooled
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.models.annotator import build_annotator
from aia_jax.tasks.annotation import AnnotatedSplits
from aia_jax.tasks.frozen_backbone import FrozenMaps
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.training.model_arrays import abstract_weights, replace_arrays, select_weights
from aia_jax.training.sharding import data_mesh
from aia_jax.utils.errors import InputError
from aia_jax.utils.model_folders import model_folder

POOLING = ("gap", "text")  # heads that use only the mean of a feature map, so that `[1, 1, F]` gives the same logits


@dataclasses.dataclass(frozen=True)
class LabelledFeatures:
    """The features of N photos and their labels. The vocabulary has C labels.

    Attributes:
        versions: features of the photos and, if the run trains on them, of the flipped photos: each `[N, h, w, F]`.
        targets: bool `[N, C]`, the labels of each photo.
        paths: real path of each photo; "" for a photo without a file.
    """

    versions: tuple[MappedRows, ...]
    targets: np.ndarray
    paths: tuple[str, ...]


def read_imported(workdir: Path, annotator: TrainedAnnotator) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Reads the training photos of a run, and the photos on which the run chose its best epoch.

    Args:
        annotator: the run's best epoch, with the C labels of the run.

    Raises:
        InputError: `workdir` has no run, or the data of the run are gone or have other labels.
    """
    config = annotator.config
    if model_folder(workdir):
        raise InputError(f"{workdir} is a model folder without training photos; retraining needs the folder of a run")
    features = _Features(annotator)
    splits = AnnotatedSplits(config, config.data.image_size, config.seed)
    held = config.eval.split
    try:
        train, others = splits.load("train"), splits.load(held)
        paths = [_real_paths(config.data, name, split) for name, split in (("train", train), (held, others))]
    except InputError as error:
        raise InputError(
            f"retraining needs the imported photos and labels of the run: {error}\n"
            f"Put them back, or write their new folder to data.root in {workdir / 'config.json'}"
        ) from None
    for split in (train, others):
        if split.labels != annotator.labels:
            raise InputError(
                f"the imported labels in {config.data.root} have changed since {workdir} was trained: "
                f"{len(annotator.labels):,} labels there, {len(split.labels):,} now, or another order. Train a new run"
            )
    flips = FLIPS[config.data.flips] if config.model.freeze_backbone else ("",)
    return (
        LabelledFeatures(tuple(features.of(train.images, flip) for flip in flips), train.targets > 0, paths[0]),
        LabelledFeatures((features.of(others.images, ""),), others.targets > 0, paths[1]),
    )


class _Features:
    """Computes or finds the features of the images of a split."""

    def __init__(self, annotator: TrainedAnnotator):
        self._annotator, config = annotator, annotator.config
        self._pool = config.model.head in POOLING
        self._frozen = None
        if config.model.freeze_backbone:
            _, shapes = abstract_weights(
                lambda rngs: build_annotator(config.model, len(annotator.labels), rngs=rngs), data_mesh()
            )
            weights = replace_arrays(select_weights(shapes, "raw"), annotator.arrays())
            self._frozen = FrozenMaps(config, annotator.channel_stats)
            self._frozen.set_weights(weights["constants"]["backbone"])

    def of(self, images: MappedRows, flip: str) -> MappedRows:
        """Returns the maps `[N, h, w, F]` of N images, or their means `[N, 1, 1, F]` for a head in `POOLING`."""
        if self._frozen:
            maps = self._frozen.maps(images, flip)
        else:
            maps = self._annotator.cached_maps(images, self._annotator.config.data.feature_dtype)
        return prepare_pooled(maps) if self._pool else maps


def _real_paths(data: Any, name: str, split: Split) -> tuple[str, ...]:
    found = photo_paths(data, name)
    return tuple(os.path.realpath(found[image]) if image in found else "" for image in split.image_names)


def imported_counts(annotator: TrainedAnnotator) -> np.ndarray:
    """Returns the number of training photos of each label, int `[C]`; zeros if the run's annotations are gone."""
    data, labels = annotator.config.data, annotator.labels
    with contextlib.suppress(InputError):
        annotations = read_annotations(data.root, data.name, "train")
        if annotations.labels == labels:
            return annotations.targets.sum(axis=0, dtype=int)
    return np.zeros(len(labels), int)
