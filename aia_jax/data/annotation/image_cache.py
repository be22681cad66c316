"""A split as one memory-mapped array of resized images, made once and kept for as long as its sources stay the same.

    <cache>/<dataset>-<hash of its place>/<split>-records-<fingerprint>/     the original bytes, as ArrayRecord files
    <cache>/<dataset>-<hash of its place>/<split>-<S>px-<fingerprint>/       images.npy  targets.npy  split.json

Nothing but flips is random in training, so the uint8 copy is the data set: each photo is decoded once.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from aia_jax.data import scenes
from aia_jax.data.annotation import tfds_builders
from aia_jax.data.annotation.annotations import CUSTOM, Annotations
from aia_jax.data.cache import cached_directory
from aia_jax.data.image_decoding import decode_image
from aia_jax.data.mapped_rows import RowWriter
from aia_jax.data.pipeline import read_ahead
from aia_jax.data.safe_names import link_problem
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import list_problems

_VERSION = 1  # of the code below: raise it when the same sources would give another copy


@dataclasses.dataclass(frozen=True)
class Source:
    """What a copy is made from.

    Attributes:
        dataset, split: names.
        place: where the sources are, for telling caches apart.
        labels: the vocabulary.
        fingerprint: changes whenever the sources do.
        num_images: how many of them can be read.
        num_bytes: of them together, roughly.
        problems: one line for every photo that cannot be read.
        make_builder: TFDS builder of this split of the readable images, given its `data_dir`.
        upright: see `images.decode_image`.
    """

    dataset: str
    split: str
    place: str
    labels: tuple[str, ...]
    fingerprint: str
    num_images: int
    num_bytes: int
    problems: tuple[str, ...]
    make_builder: Callable[[Path], tfds.core.GeneratorBasedBuilder]
    upright: bool = False


def photo_source(root: str | Path, dataset: str, split: str, annotations: Annotations) -> Source:
    """Annotated photos on disk; absent, empty and unreadable ones become `problems`.

    So do links out of `root`, but for a user's own photos: the lists of the others come from somebody else. The folders
    of the photos may themselves be links, to wherever.
    """
    paths = dict(zip(annotations.image_names, annotations.image_paths, strict=True))
    folders = {Path(root), *(path.parents[len(PurePath(name).parts) - 1] for name, path in paths.items())}
    examine = partial(_examine, folders=[] if dataset == CUSTOM else [folder.resolve() for folder in folders])
    with ThreadPoolExecutor(16) as pool:  # A network file system answers many at once.
        files = list(pool.map(examine, annotations.image_paths))
    readable = [row for row, file in enumerate(files) if not isinstance(file, str)]
    present = annotations.take(readable)
    rows = [(name, str(path)) for name, path in paths.items()]
    return Source(
        dataset=dataset,
        split=split,
        place=str(Path(root).resolve()),
        labels=annotations.labels,
        fingerprint=_hash(annotations.labels, rows, files, annotations.targets.tobytes().hex()),
        num_images=len(readable),
        num_bytes=sum(files[row][0] for row in readable),
        problems=tuple(file for file in files if isinstance(file, str)),
        make_builder=lambda folder: tfds_builders.PHOTO_BUILDERS[dataset]({split: present}, data_dir=folder),
        upright=dataset == CUSTOM,  # photos from cameras; the published ones were prepared without
    )


def scenes_source(split: str, seed: int, indices: range, size: int) -> Source:
    """Drawn scenes, at the size they are wanted."""
    folder = Path(scenes.__file__).parent
    code = "".join((folder / name).read_text() for name in ("dataset.py", "painting.py"))
    return Source(
        dataset="scenes",
        split=split,
        place=f"seed {seed}, {indices}, {size} px",
        labels=scenes.LABELS,
        fingerprint=_hash(seed, repr(indices), size, code),
        num_images=len(indices),
        num_bytes=len(indices) * size * size * 3,
        problems=(),
        make_builder=lambda folder: tfds_builders.Scenes(seed, {split: indices}, size, data_dir=folder),
    )


def prepare_copy(source: Source, cache: Path, size: int, *, skip_corrupt: bool, num_workers: int) -> Path:
    """The directory of the copy of `source` at `size` x `size` pixels, made now if need be.

    Args:
        skip_corrupt: leave unreadable images out instead of raising.
        num_workers: processes that decode; 0: threads of this one.

    Raises:
        InputError: unreadable images, none left, or no room in the cache.
    """
    parent = cache / f"{source.dataset}-{_hash(source.place)[:8]}"

    def write(directory: Path) -> None:
        records = _prepare_records(source, parent)
        names, targets, problems = [], [], list(source.problems)
        description = f"{source.dataset} {source.split}: resizing to {size} px"
        with RowWriter(directory / "images.npy", (size, size, 3), np.uint8) as images:
            for record in tqdm(
                _resized(records, size, num_workers, source.upright),
                description,
                len(records),
                unit="img",
                mininterval=0.5,
            ):
                if record["problem"]:
                    problems.append(f"{record['name']}: {record['problem']}")
                else:
                    images.append(record["image"])
                    names.append(record["name"])
                    targets.append(np.bincount(record["labels"], minlength=len(source.labels)) > 0)
        _check_problems(source, problems, len(names), skip_corrupt)
        np.save(directory / "targets.npy", np.asarray(targets, np.uint8))
        facts = {"image_names": names, "labels": source.labels, "left_out": problems}
        (directory / "split.json").write_text(json.dumps(facts))

    fingerprint = _hash(_VERSION, source.fingerprint, size, skip_corrupt)[:12]
    num_bytes = source.num_images * size * size * 3
    return cached_directory(parent, f"{source.split}-{size}px", fingerprint, num_bytes, write)


def _check_problems(source: Source, problems: list[str], num_good: int, skip_corrupt: bool) -> None:
    if problems and not skip_corrupt:
        raise InputError(
            f"{source.dataset} {source.split}: {len(problems):,} image(s) cannot be used"
            f" (--config.data.skip_corrupt=True goes on without them):{list_problems(problems)}"
        )
    if not num_good:
        raise InputError(f"{source.dataset} {source.split}: no image can be used:{list_problems(problems)}")
    if problems:
        tqdm.write(
            f"{source.dataset} {source.split}: {len(problems):,} image(s) left out:{list_problems(problems)}",
            file=sys.stderr,
        )


def _prepare_records(source: Source, parent: Path) -> Any:
    """The readable originals as a random-access sequence of `{"image": bytes, "image_name", "labels"}`."""
    if not source.num_images:
        return []
    kind, fingerprint = f"{source.split}-records", _hash(_VERSION, source.fingerprint)[:12]

    def write(directory: Path) -> None:
        tfds_builders.prepare(source.make_builder(directory))

    folder = cached_directory(parent, kind, fingerprint, source.num_bytes, write)
    written = next(folder.rglob("dataset_info.json")).parent
    builder = tfds.builder_from_directory(written)  # Unlike the writing builder it can be pickled into workers.
    return builder.as_data_source(source.split, decoders={"image": tfds.decode.SkipDecoding()})


def _resized(records: Any, size: int, num_workers: int, upright: bool) -> Iterator[dict[str, Any]]:
    """Decoded records in order: `image` uint8 `[S, S, 3]`, `name`, `labels`, `problem` ("": none)."""
    if not len(records):
        return
    dataset = grain.MapDataset.source(records).map(_Decode(size, upright))
    ahead = read_ahead(dataset, num_threads=os.cpu_count() or 1, buffer_size=32, num_workers=num_workers)
    with contextlib.closing(iter(ahead)) as elements:
        yield from elements


@dataclasses.dataclass(frozen=True)
class _Decode:
    """Picklable, as worker processes need it."""

    size: int
    upright: bool

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        image, problem = np.zeros((self.size, self.size, 3), np.uint8), ""
        try:
            image = decode_image(record["image"], self.size, upright=self.upright)
        except InputError as error:
            problem = str(error)
        return {"image": image, "name": record["image_name"].decode(), "labels": record["labels"], "problem": problem}


def _examine(path: Path, folders: Sequence[Path]) -> tuple[int, int] | str:
    """Size and time of change of a photo, or what is wrong with it; with `folders` links may not lead out of them."""
    if folders and (problem := link_problem(path, folders)):
        return f"{path}: {problem}"
    try:
        status = path.stat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"{path}: not a file"
    if not status.st_size:
        return f"{path}: the file is empty"
    if not os.access(path, os.R_OK):
        return f"{path}: no permission to read it"
    return status.st_size, status.st_mtime_ns


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
