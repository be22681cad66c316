"""Loads splits for training and evaluation. The resized images stay on disk, and the targets are in memory."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from aia_jax.data import scenes
from aia_jax.data.annotation.annotations import FOLDERS, SPLITS, read_annotations
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json

# Mean and standard deviation of the channels (red, green, blue) on the scale 0..1. The values for photos are from the
# reference implementation. The values for scenes were measured on 2,000 scenes of seed 0 at 96 px.
CHANNEL_STATS = {
    "corel5k": ((0.3928, 0.4079, 0.3531), (0.2559, 0.2436, 0.2544)),
    "espgame": ((0.5377, 0.5087, 0.4845), (0.3244, 0.3181, 0.3254)),
    "iaprtc12": ((0.4901, 0.4739, 0.4489), (0.2557, 0.2543, 0.2769)),
    "vg500": ((0.4697, 0.4518, 0.4163), (0.2727, 0.2684, 0.2855)),
    "scenes": ((0.4533, 0.4700, 0.3761), (0.2589, 0.2179, 0.2147)),
}
CUSTOM_STATS = "channel_stats.json"  # CHANNEL_STATS of a user's own photos: a file beside the annotations
DATASETS = (*FOLDERS, "scenes")
ChannelStats = tuple[tuple[float, ...], tuple[float, ...]]

_FIRST_TEST_SCENE = 10_000_000


@dataclasses.dataclass(frozen=True)
class Split:
    """N annotated images of S x S pixels, with C labels.

    Attributes:
        name: name of the split, such as "train".
        images: uint8 `[N, S, S, 3]`, memory-mapped.
        targets: uint8 `[N, C]`, multi-hot.
        image_names: N names, in the order of the annotation file.
        labels: C label names.
    """

    name: str
    images: MappedRows
    targets: np.ndarray
    image_names: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_names)

    def take(self, indices: np.ndarray, name: str | None = None) -> "Split":
        """Selects the images at `indices`, in that order, without reading them. If `name` is None, keeps the name."""
        indices = np.asarray(indices)
        names = tuple(self.image_names[index] for index in indices)
        return Split(name or self.name, self.images.take(indices), self.targets[indices], names, self.labels)


def load_split(config_data: ConfigDict, split: str, image_size: int) -> Split:
    """Loads a split with images of `image_size` x `image_size` pixels. The first call prepares the images.

    Args:
        config_data: the fields `name`, `root`, `cache_dir`, `skip_corrupt` and `num_workers` are used. For scenes, the
            fields `num_train`, `num_test` and `seed` replace `root`.
        split: "train" or "test".

    Raises:
        InputError: the name or the split is unknown, the annotations are absent or malformed, images are unreadable, or
            the disk of the cache is full.
    """
    from aia_jax.data.annotation import image_cache  # imported here, because some machines lack Grain and TFDS

    if config_data.name not in DATASETS:
        raise InputError(f"config.data.name={config_data.name!r} is unknown; known: {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; known: {', '.join(SPLITS)}")
    if image_size < 1:
        raise InputError(f"config.data.image_size={image_size} must be at least 1")
    if config_data.name == "scenes":
        indices = scene_indices(config_data, split)
        source = image_cache.scenes_source(split, config_data.seed, indices, image_size)
    else:
        annotations = read_annotations(config_data.root, config_data.name, split)
        source = image_cache.photo_source(config_data.root, config_data.name, split, annotations)
    copy = image_cache.prepare_copy(source, config_data, image_size)
    facts = json.loads((copy / "split.json").read_text())
    targets = np.load(copy / "targets.npy")
    return Split(split, MappedRows(copy / "images.npy"), targets, tuple(facts["image_names"]), tuple(facts["labels"]))


def split_validation(split: Split, fraction: float, seed: int, *, stratified: bool) -> tuple[Split, Split]:
    """Divides a split at random into `(train, validation)`. `seed` determines the parts. Both keep the row order.

    Args:
        stratified: if True, the images of each label are divided in the same proportion, and the training part has all
            labels. This is useful for small data sets.

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
        fraction: size of the second part, above 0 and below 1.
        seed: seed of the random order in which the images are assigned to the parts.
        in_both: if True, the second part also gets at least one image of each label that two or more images have. This
            is not always possible. If many labels are rare, the second part is larger than `fraction`.

    Returns:
        bool `[N]`, True for images in the second part. Neither part is empty.
    """
    targets = targets > 0
    counts = targets.sum(axis=0)
    wanted_second = np.clip(fraction * counts, 1, counts - 1) if in_both else fraction * counts
    second = np.where(counts > 1, wanted_second, 0)
    wanted = np.stack([counts - second, second])  # [2, C], images that each part lacks of each label
    wanted_images = len(targets) * np.array([1 - fraction, fraction])
    part = np.full(len(targets), -1)

    def place(row: int, wanted_here: np.ndarray) -> None:
        """Adds an image to the part with the larger `wanted_here`. If both are equal, `wanted_images` decides."""
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
    """Returns the number of validation images: `fraction` of all images.

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
    """Returns the indices of a split's scenes in the endless sequence of scenes. `split` is "train" or "test".

    Raises:
        InputError: `num_train` or `num_test` is out of range.
    """
    field, first = {"train": ("num_train", 0), "test": ("num_test", _FIRST_TEST_SCENE)}[split]
    count = config_data[field]
    if not 0 < count <= _FIRST_TEST_SCENE:
        raise InputError(f"config.data.{field}={count} must be in 1..{_FIRST_TEST_SCENE}")
    return range(first, first + count)


def read_channel_stats(root: str | Path) -> ChannelStats:
    """Reads the channel statistics of a user's own photos from the folder of the annotations.

    Raises:
        InputError: the file is absent or malformed.
    """
    path = Path(root) / CUSTOM_STATS
    if not path.is_file():
        raise InputError(f"{path} does not exist; config.data.root must be the folder that aia import-labels wrote")
    document = read_json(path, '{"mean": [r, g, b], "std": [r, g, b]}')
    stats = []
    for field, least in (("mean", 0.0), ("std", 1e-6)):
        values = document.get(field) if isinstance(document, dict) else None
        numbers = values if isinstance(values, list) and len(values) == 3 else [None]
        if not all(isinstance(number, float | int) and least <= number <= 1 for number in numbers):
            raise InputError(f"{path}: field {field!r} must be three numbers on the scale 0..1, found {values!r:.60}")
        stats.append(tuple(map(float, numbers)))
    return stats[0], stats[1]


def read_vocabulary(config_data: ConfigDict) -> tuple[str, ...]:
    """Returns the labels of a data set, from the annotations of "train" or, if these cannot be read, of "test".

    Raises:
        InputError: the name is unknown, or the annotations are absent or malformed.
    """
    if config_data.name == "scenes":
        return scenes.LABELS
    try:
        return read_annotations(config_data.root, config_data.name, "train").labels
    except InputError:
        with contextlib.suppress(InputError):
            return read_annotations(config_data.root, config_data.name, "test").labels
        raise


def photo_paths(config_data: ConfigDict, split: str) -> dict[str, Path]:
    """Returns a dict from the names of photos to their paths. The generated data set `scenes` has no files.

    Args:
        split: "train", "test" or "validation". The photos of "validation" are in "train", so both give the same dict.

    Raises:
        InputError: the annotations are absent or malformed.
    """
    if config_data.name == "scenes":
        return {}
    annotations = read_annotations(config_data.root, config_data.name, "test" if split == "test" else "train")
    return dict(zip(annotations.image_names, annotations.image_paths, strict=True))


def _repair(in_second: np.ndarray, targets: np.ndarray, counts: np.ndarray, in_both: bool) -> None:
    """Moves images into a part that is empty or lacks a label. If possible, the other part keeps all its labels."""
    present = np.stack([targets[~in_second].sum(axis=0), targets[in_second].sum(axis=0)])  # [2, C], images per label

    def move(row: int, to: int) -> None:
        in_second[row] = bool(to)
        present[to, targets[row]] += 1
        present[1 - to, targets[row]] -= 1

    def least_needed(rows: np.ndarray, part: int) -> int:
        """Returns the row to remove from `part`, so that `part` loses as few labels as possible."""
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
