"""What is there of a public data set, held against what was published."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from aia_jax.data.annotation.annotations import FOLDERS, SPLITS, Annotations, read_annotations
from aia_jax.data.public.public_datasets import PublicDataset
from aia_jax.utils.errors import InputError

_SHOWN = 3  # names


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What is there.

    Attributes:
        folder: of the data set.
        annotations: by split, of the splits whose annotations can be read.
        problems: what is wrong with the annotations, a message each.
        missing: photos that are not there, where they belong.
        unreadable: photos that cannot be opened, and why.
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
        """A few lines of counts, and the names of the first photos that are not as they should be."""
        lines = [str(self.folder)]
        for split, annotations in self.annotations.items():
            per_image = annotations.targets.sum() / len(annotations)
            lines.append(
                f"  {split:5} {len(annotations):7,} images, {len(annotations.labels)} labels, {per_image:.2f} an image"
            )
        total = sum(map(len, self.annotations.values()))
        if total:
            present = total - len(self.missing) - len(self.unreadable)
            lines.append(f"  photos {present:6,} of {total:,}")
        if self.missing:
            lines.append(f"  {len(self.missing):,} photos are missing: {first_names(self.missing)}")
        if self.unreadable:
            lines.append(f"  {len(self.unreadable):,} photos cannot be opened:")
            lines += [f"    {path}: {why}" for path, why in list(self.unreadable.items())[:_SHOWN]]
        return "\n".join([*lines, *(f"  {problem}" for problem in self.problems)])


def inspect_dataset(root: Path, dataset: PublicDataset) -> Inspection:
    """Reads the annotations, counts, and looks at the header of every photo. Nothing is written."""
    annotations, problems = {}, []
    for split in SPLITS:
        try:
            annotations[split] = read_annotations(root, dataset.name, split)
        except InputError as error:
            problems.append(str(error))
    problems += _count_problems(dataset, annotations)
    paths = [path for split in annotations.values() for path in split.image_paths]
    missing, unreadable = _look_at(paths, dataset.name)
    return Inspection(root / FOLDERS[dataset.name], annotations, tuple(problems), missing, unreadable)


def first_names(paths: Sequence[Path]) -> str:
    """The names of the first files."""
    return ", ".join([*(path.name for path in paths[:_SHOWN]), *(["..."] if len(paths) > _SHOWN else [])])


def _count_problems(dataset: PublicDataset, annotations: dict[str, Annotations]) -> list[str]:
    problems = []
    for split, found in annotations.items():
        published = {"images": dataset.num_images[split], "labels": dataset.num_labels}
        counted = {"images": len(found), "labels": len(found.labels)}
        problems += [
            f"{split}: {counted[what]:,} {what}; published are {published[what]:,}"
            for what in published
            if counted[what] != published[what]
        ]
    if len(annotations) < len(SPLITS):
        return problems
    train, test = (annotations[split] for split in SPLITS)
    if train.labels != test.labels:
        problems.append("train and test have different labels, or in another order")
    if both := sorted(set(train.image_names) & set(test.image_names)):
        problems.append(f"{len(both):,} images are in train and in test: {first_names(list(map(Path, both)))}")
    per_image = float(train.targets.sum() + test.targets.sum()) / (len(train) + len(test))
    if round(per_image, 1) != dataset.labels_per_image:
        problems.append(f"{per_image:.2f} labels an image; published are {dataset.labels_per_image}")
    return problems


def _look_at(paths: Sequence[Path], name: str) -> tuple[tuple[Path, ...], dict[Path, str]]:
    """Photos that are missing, and those that cannot be opened."""
    Image.preinit()
    with ThreadPoolExecutor(16) as pool:  # A network file system answers many at once.
        found = pool.map(_problem, paths)
        bar = tqdm(found, f"{name}: looking at photos", len(paths), unit="img", dynamic_ncols=True, disable=not paths)
        problems = dict(zip(paths, bar, strict=True))
    missing = tuple(path for path, problem in problems.items() if problem is None)
    return missing, {path: problem for path, problem in problems.items() if problem}


def _problem(path: Path) -> str | None:
    """Why a photo cannot be opened; "": it can; None: it is not there."""
    try:
        with Image.open(path):
            return ""
    except FileNotFoundError:
        return None
    except Image.UnidentifiedImageError:
        return "not an image of a known format" if path.stat().st_size else "the file is empty"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # Pillow's readers of headers raise almost anything for bytes that are none.
        return str(error) or type(error).__name__
