"""Compares the local files of a public data set with the published numbers of images and labels."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from aia_jax.data.annotation.annotations import FOLDERS, SPLITS, Annotations, read_annotations
from aia_jax.data.public.public_datasets import PublicDataset
from aia_jax.utils.errors import InputError

_SHOWN = 3  # number of names in a report


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The state of the local files of a public data set.

    Attributes:
        folder: folder of the data set.
        annotations: annotations of each split whose annotation files can be read.
        problems: one message for each problem of the annotation files.
        missing: paths of photos that do not exist.
        unreadable: dict from the path of each photo that cannot be opened to the reason.
    """

    folder: Path
    annotations: dict[str, Annotations]
    problems: tuple[str, ...]
    missing: tuple[Path, ...]
    unreadable: dict[Path, str]

    @property
    def is_complete(self) -> bool:
        return not (self.problems or self.missing or self.unreadable)

    def report(self) -> str:
        """Returns a few lines: numbers of images and labels, the first missing or unreadable photos, and `problems`."""
        lines = [str(self.folder)]
        for split, found in self.annotations.items():
            per_image = found.targets.sum() / len(found)
            lines.append(f"  {split:5} {len(found):7,} images, {len(found.labels)} labels, {per_image:.2f} per image")
        if total := sum(map(len, self.annotations.values())):
            lines.append(f"  photos {total - len(self.missing) - len(self.unreadable):6,} of {total:,}")
        if self.missing:
            lines.append(f"  {len(self.missing):,} photos are missing: {first_names(self.missing)}")
        if self.unreadable:
            lines.append(f"  {len(self.unreadable):,} photos cannot be opened:")
            lines += [f"    {path}: {why}" for path, why in list(self.unreadable.items())[:_SHOWN]]
        return "\n".join([*lines, *(f"  {problem}" for problem in self.problems)])


def inspect_dataset(root: Path, dataset: PublicDataset) -> Inspection:
    """Reads the annotations of a data set and the header of every photo. Writes nothing."""
    annotations, problems = {}, []
    for split in SPLITS:
        try:
            annotations[split] = read_annotations(root, dataset.name, split)
        except InputError as error:
            problems.append(str(error))
    problems += _count_problems(dataset, annotations)
    paths = [path for split in annotations.values() for path in split.image_paths]
    Image.preinit()
    with ThreadPoolExecutor(16) as pool:  # A network file system answers many requests at once.
        name = f"{dataset.name}: checking photos"
        bar = tqdm(pool.map(_problem, paths), name, len(paths), unit="img", dynamic_ncols=True, disable=not paths)
        found = dict(zip(paths, bar, strict=True))
    missing = tuple(path for path, problem in found.items() if problem is None)
    unreadable = {path: problem for path, problem in found.items() if problem}
    return Inspection(root / FOLDERS[dataset.name], annotations, tuple(problems), missing, unreadable)


def first_names(paths: Sequence[Path]) -> str:
    """Returns the names of the first `_SHOWN` files, separated by commas."""
    return ", ".join([*(path.name for path in paths[:_SHOWN]), *(["..."] if len(paths) > _SHOWN else [])])


def _count_problems(dataset: PublicDataset, annotations: dict[str, Annotations]) -> list[str]:
    problems = []
    for split, found in annotations.items():
        counts = {"images": (len(found), dataset.num_images[split]), "labels": (len(found.labels), dataset.num_labels)}
        for what, (count, published) in counts.items():
            if count != published:
                problems.append(f"{split}: {count:,} {what}; the published number is {published:,}")
    if len(annotations) < len(SPLITS):
        return problems
    train, test = (annotations[split] for split in SPLITS)
    if train.labels != test.labels:
        problems.append("train and test have different labels, or in another order")
    if both := sorted(set(train.image_names) & set(test.image_names)):
        problems.append(f"{len(both):,} images are in train and in test: {first_names(list(map(Path, both)))}")
    per_image = float(train.targets.sum() + test.targets.sum()) / (len(train) + len(test))
    if round(per_image, 1) != dataset.labels_per_image:
        problems.append(f"{per_image:.2f} labels per image; the published mean is {dataset.labels_per_image}")
    return problems


def _problem(path: Path) -> str | None:
    """Returns the reason why a photo cannot be opened; "" if it can be opened; None if it does not exist."""
    try:
        with Image.open(path):
            return ""
    except FileNotFoundError:
        return None
    except Image.UnidentifiedImageError:
        return "not an image of a known format" if path.stat().st_size else "the file is empty"
    except Exception as error:  # Pillow's header readers raise many types of errors for invalid bytes.
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
