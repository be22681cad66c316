"""Loads the splits of annotated images. The resized images stay on disk, and the multi-hot labels are in memory."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from aia_jax.data import scenes
from aia_jax.data.annotation.annotations import FOLDERS, read_annotations
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.utils.errors import InputError

if TYPE_CHECKING:
    from aia_jax.data.annotation.streamed_images import StreamedImages

DATASETS = (*FOLDERS, "scenes")

_FIRST_TEST_SCENE = 10_000_000


@dataclasses.dataclass(frozen=True)
class Split:
    """N annotated images of S x S pixels. The vocabulary has C labels.

    Attributes:
        name: name of the split, such as "train".
        images: the resized images, uint8 `[N, S, S, 3]`: memory-mapped, or decoded when they are indexed.
        targets: labels of each image, multi-hot uint8 `[N, C]`.
        image_names: file names of the N images, in the order of the annotation file.
        labels: the names of the C labels.
    """

    name: str
    images: "MappedRows | StreamedImages"
    targets: np.ndarray
    image_names: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_names)

    def take(self, indices: np.ndarray, name: str | None = None) -> "Split":
        """Returns a split of the images at `indices`, in this order, without reading them. `name` renames the split."""
        indices = np.asarray(indices)
        names = tuple(self.image_names[index] for index in indices)
        return Split(name or self.name, self.images.take(indices), self.targets[indices], names, self.labels)


def load_split(config_data: ConfigDict, split: str, image_size: int) -> Split:
    """Loads a split with images of `image_size` x `image_size` pixels. The first call resizes and caches the images.

    If `placement` is "stream", nothing is cached: the images are decoded when they are indexed.

    Args:
        config_data: `config.data`: `name`, `root`, `cache_dir`, `skip_corrupt`, `num_workers` and, if there is one,
            `placement`. For the generated data set "scenes", `num_train`, `num_test` and `seed` replace `root`.
        split: "train" or "test".

    Raises:
        InputError: the data set or the split is unknown, an annotation file is absent or malformed, images are
            unreadable, or the disk of the cache is full. With "stream": the data set has no photos, or its records
            cannot be used; see `photo_records.open_records`.
    """
    if config_data.get("placement") == "stream":
        return _stream_split(config_data, split, image_size)
    from aia_jax.data.annotation import image_cache  # imported here, because some machines lack Grain

    if config_data.name == "scenes":
        indices = scene_indices(config_data, split)
        source = image_cache.scenes_source(split, config_data.seed, indices, image_size)
    else:
        annotations = read_annotations(config_data.root, config_data.name, split)
        source = image_cache.photo_source(config_data.root, config_data.name, split, annotations)
    copy = image_cache.prepare_copy(source, config_data, image_size)
    facts = json.loads((copy / "split.json").read_bytes())
    targets = np.load(copy / "targets.npy")
    return Split(split, MappedRows(copy / "images.npy"), targets, tuple(facts["image_names"]), tuple(facts["labels"]))


def _stream_split(config_data: ConfigDict, split: str, image_size: int) -> Split:
    from aia_jax.data.annotation.streamed_images import stream_images  # imported here, because it needs Grain

    root, name = config_data.root, config_data.name
    if name == "scenes":
        remedy = "set config.data.placement to 'host' or 'device'"
        raise InputError(f"config.data.placement='stream' reads photos, but scenes are generated; {remedy}")
    rows = read_annotations(root, name, split)
    images = stream_images(root, name, split, rows, image_size, config_data.num_workers)
    return Split(split, images, rows.targets, rows.image_names, rows.labels)


def split_validation(split: Split, fraction: float, seed: int, *, stratified: bool) -> tuple[Split, Split]:
    """Divides a split at random into a training part and a validation part. Each part keeps the order of the images.

    Args:
        fraction: the fraction of the images in the validation part.
        stratified: whether the validation part gets about this fraction of the images of each label, and the training
            part at least one image of each label. This is useful for small data sets.

    Raises:
        InputError: one of the parts would be empty.
    """
    num_validation = validation_size(fraction, len(split))
    if stratified:
        chosen = stratified_split(split.targets, fraction, seed, in_both=False)
    else:
        shuffled = np.random.default_rng(seed).permutation(len(split))
        chosen = np.isin(np.arange(len(split)), shuffled[:num_validation])
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen), "validation")


def stratified_split(targets: np.ndarray, fraction: float, seed: int, *, in_both: bool) -> np.ndarray:
    """Splits N images into two parts. The second part has about `fraction` of all images and of each label's images.

    Source: Sechidis, Tsoumakas and Vlahavas, On the stratification of multi-label data, ECML PKDD 2011, algorithm 1.
    Unlike in that algorithm, the first part always has at least one image of each label.

    Args:
        targets: multi-hot `[N, C]` for C labels. N is at least 2.
        fraction: the fraction of the images in the second part, above 0 and below 1.
        seed: seed of the random order in which the images are assigned to the parts.
        in_both: if True, the second part also gets, where possible, an image of each label that two or more images
            have. If many labels are rare, the second part is then larger than `fraction`.

    Returns:
        bool `[N]`, True for images in the second part. Neither part is empty.
    """
    targets = targets > 0
    counts = targets.sum(axis=0)
    wanted_second = np.clip(fraction * counts, 1, counts - 1) if in_both else fraction * counts
    second = np.where(counts > 1, wanted_second, 0)
    wanted = np.stack([counts - second, second])  # [2, C], number of images of each label that each part still needs
    wanted_images = len(targets) * np.array([1 - fraction, fraction])
    part = np.full(len(targets), -1)

    def place(row: int, wanted_here: np.ndarray) -> None:
        """Assigns image `row` to the part with the larger value in `wanted_here` or, on a tie, in `wanted_images`."""
        difference = wanted_here[1] - wanted_here[0] or wanted_images[1] - wanted_images[0]
        part[row] = int(difference > 0)
        wanted[part[row], targets[row]] -= 1
        wanted_images[part[row]] -= 1

    order = np.random.default_rng(seed).permutation(len(targets))
    remaining = counts.copy()
    while remaining.any():
        label = np.flatnonzero(remaining == remaining[remaining > 0].min())[0]
        for row in order[targets[order, label] & (part[order] < 0)]:
            place(row, wanted[:, label])
            remaining -= targets[row]
    for row in order[part[order] < 0]:  # images without labels
        place(row, wanted_images)
    in_second = part == 1
    _repair(in_second, targets, counts, in_both)
    return in_second


def validation_size(fraction: float, num_images: int) -> int:
    """Returns the number of validation images: `fraction * num_images`, rounded.

    Raises:
        InputError: no image would be left for training or for validation.
    """
    size = round(fraction * num_images)
    if not 0 < size < num_images:
        raise InputError(
            f"config.data.validation_fraction={fraction} leaves {size} of {num_images} images for validation;"
            " both parts need at least one"
        )
    return size


def scene_indices(config_data: ConfigDict, split: str) -> range:
    """Returns the indices of the scenes in the split "train" or "test"; see `scenes.draw`.

    Raises:
        InputError: `config.data` lacks a field of scenes, or its `num_train` or `num_test` is out of range.
    """
    field, first = {"train": ("num_train", 0), "test": ("num_test", _FIRST_TEST_SCENE)}[split]
    if lacking := [f"config.data.{name}" for name in ("num_train", "num_test", "seed") if name not in config_data]:
        raise InputError(
            f"config.data.name=scenes needs {', '.join(lacking)}, which this config lacks: the configs demo, "
            "demo_retrieval and demo_search have them"
        )
    count = config_data[field]
    if not 0 < count <= _FIRST_TEST_SCENE:
        raise InputError(f"config.data.{field}={count} must be in 1..{_FIRST_TEST_SCENE}")
    return range(first, first + count)


def read_vocabulary(config_data: ConfigDict) -> tuple[str, ...]:
    """Returns the labels of a data set, from the annotations of "train" or, if these cannot be read, of "test".

    Raises:
        InputError: `config.data.name` is unknown, or the annotation files are absent or malformed.
    """
    if config_data.name == "scenes":
        return scenes.LABELS
    try:
        return read_annotations(config_data.root, config_data.name, "train").labels
    except InputError:
        with contextlib.suppress(InputError):
            return read_annotations(config_data.root, config_data.name, "test").labels
        raise


def count_images(config_data: ConfigDict, split: str) -> int:
    """Returns the number of images of the split "train" or "test". Raises InputError as `load_split` does."""
    if config_data.name == "scenes":
        return len(scene_indices(config_data, split))
    return len(read_annotations(config_data.root, config_data.name, split).image_names)


def photo_paths(config_data: ConfigDict, split: str) -> dict[str, Path]:
    """Returns a dict from photo name to path; {} for the generated data set "scenes", which has no photo files.

    Args:
        split: "train", "test" or "validation". For "train" and "validation", the dict has all photos of train.json.

    Raises:
        InputError: the annotation file is absent or malformed.
    """
    if config_data.name == "scenes":
        return {}
    annotations = read_annotations(config_data.root, config_data.name, "test" if split == "test" else "train")
    return dict(zip(annotations.image_names, annotations.image_paths, strict=True))


def _repair(in_second: np.ndarray, targets: np.ndarray, counts: np.ndarray, in_both: bool) -> None:
    """Moves images into a part that is empty or lacks labels, so that `in_second` is as `stratified_split` promises."""
    present = np.stack([targets[~in_second].sum(axis=0), targets[in_second].sum(axis=0)])  # [2, C], images per label

    def move(row: int, to: int) -> None:
        in_second[row] = bool(to)
        present[to, targets[row]] += 1
        present[1 - to, targets[row]] -= 1

    def least_needed(rows: np.ndarray, part: int) -> int:
        """Returns the row whose removal takes the fewest labels from `part`. `rows` are the rows to choose from."""
        return int(rows[(targets[rows] & (present[part] == 1)).sum(axis=1).argmin()])

    for label in np.flatnonzero((counts > 1) & (present[1] == 0)) if in_both else ():
        for row in np.flatnonzero(targets[:, label] & ~in_second):
            if (present[0, targets[row]] > 1).all():
                move(row, 1)
                break
    if not in_second.any():
        move(least_needed(np.arange(len(targets)), 0), 1)
    for label in range(len(counts)):
        if counts[label] and not present[0, label] and in_second.sum() > 1:
            move(least_needed(np.flatnonzero(targets[:, label]), 1), 0)
