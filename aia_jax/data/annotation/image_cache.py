"""Prepares copies of splits. A copy is a memory-mapped array of resized images. It is kept until its sources change.

    <cache>/<dataset>-<hash of `place`>/<split>-records-<fingerprint>/     the original bytes, as ArrayRecord files
    <cache>/<dataset>-<hash of `place`>/<split>-<S>px-<fingerprint>/       images.npy  targets.npy  split.json

`place` and `fingerprint` are fields of `Source`. Augmentation keeps S x S pixels, so each photo is resized once.
"""

import dataclasses
import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tqdm import tqdm

from aia_jax.data import scenes
from aia_jax.data.annotation import tfds_builders
from aia_jax.data.annotation.annotations import CUSTOM, Annotations
from aia_jax.data.cache import cache_root, cached_directory
from aia_jax.data.image_decoding import decode_image
from aia_jax.data.mapped_rows import RowWriter
from aia_jax.data.pipeline import map_ahead
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import list_problems

_VERSION = 1  # version of the code below; increase it when a change of the code changes the copies


@dataclasses.dataclass(frozen=True)
class Source:
    """The sources of a prepared copy.

    Attributes:
        dataset, split: name of the data set, and name of the split.
        place: location of the sources, such as the folder of the data. Each location has its own cache folder.
        labels: the vocabulary.
        fingerprint: hash of the sources. It changes when the sources change.
        num_images: number of readable images.
        num_bytes: approximate total size of the readable images.
        problems: one line for each photo that cannot be read.
        make_builder: function from a folder to the TFDS builder that writes the readable images into this folder.
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


def photo_source(root: str | Path, dataset: str, split: str, annotations: Annotations) -> Source:
    """Returns the source of annotated photos on disk. Its field `problems` names absent, empty and unreadable photos.

    For public data sets, `problems` also names photos that are links out of `root`, because other people wrote the
    lists of photos. A user's own photos may be links. A whole folder of photos may be a link to any place.
    """
    paths = dict(zip(annotations.image_names, annotations.image_paths, strict=True))
    folders = {Path(root), *(path.parents[len(PurePath(name).parts) - 1] for name, path in paths.items())}
    examine = partial(_examine, folders=[] if dataset == CUSTOM else [folder.resolve() for folder in folders])
    with ThreadPoolExecutor(16) as pool:  # A network file system answers many requests at once.
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
        make_builder=lambda folder: tfds_builders.AnnotatedPhotos(dataset, {split: present}, data_dir=folder),
    )


def scenes_source(split: str, seed: int, indices: range, size: int) -> Source:
    """Returns the source of generated scenes. Scenes are drawn at the size of the copy, `size` x `size` pixels."""
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


def prepare_copy(source: Source, config_data: ConfigDict, size: int) -> Path:
    """Returns the directory of the prepared copy of `source` at `size` x `size` pixels. Creates a missing directory.

    Args:
        config_data: the fields `cache_dir`, `skip_corrupt` and `num_workers` are used.

    Raises:
        InputError: images are unreadable, no readable image is left, or the disk of the cache is full.
    """
    parent = cache_root(config_data.cache_dir) / f"{source.dataset}-{_hash(source.place)[:8]}"
    skip_corrupt = config_data.skip_corrupt

    def write(directory: Path) -> None:
        records = _prepare_records(source, parent)
        # A user's photos need the rotation in their EXIF data. The published data sets were prepared without it.
        decode = partial(_decode, size=size, upright=source.dataset == CUSTOM)
        decoded = map_ahead(decode, records, config_data.num_workers) if len(records) else []
        description = f"{source.dataset} {source.split}: resizing to {size} px"
        names, targets, problems = [], [], list(source.problems)
        with RowWriter(directory / "images.npy", (size, size, 3), np.uint8) as images:
            for record in tqdm(decoded, description, len(records), unit="img", mininterval=0.5):
                if record["problem"]:
                    problems.append(f"{record['name']}: {record['problem']}")
                else:
                    images.extend(record["image"][None])
                    names.append(record["name"])
                    targets.append(np.bincount(record["labels"], minlength=len(source.labels)) > 0)
        _check_problems(f"{source.dataset} {source.split}", problems, len(names), skip_corrupt)
        np.save(directory / "targets.npy", np.asarray(targets, np.uint8))
        facts = {"image_names": names, "labels": source.labels, "left_out": problems}
        (directory / "split.json").write_text(json.dumps(facts))

    fingerprint = _hash(_VERSION, source.fingerprint, size, skip_corrupt)[:12]
    num_bytes = source.num_images * size * size * 3
    return cached_directory(parent, f"{source.split}-{size}px", fingerprint, num_bytes, write)


def _check_problems(split: str, problems: list[str], num_good: int, skip_corrupt: bool) -> None:
    count, listed = f"{split}: {len(problems):,} image(s)", list_problems(problems)
    if problems and not skip_corrupt:
        remedy = "(--config.data.skip_corrupt=True continues without them)"
        raise InputError(f"{count} cannot be used {remedy}:{listed}")
    if not num_good:
        raise InputError(f"{split}: no image can be used:{listed}")
    if problems:
        tqdm.write(f"{count} left out:{listed}", file=sys.stderr)


def _prepare_records(source: Source, parent: Path) -> Sequence[dict[str, Any]]:
    """Returns a record for each readable image: `{"image": bytes of the file, "image_name", "labels"}`."""
    if not source.num_images:
        return []
    kind, fingerprint = f"{source.split}-records", _hash(_VERSION, source.fingerprint)[:12]
    folder = cached_directory(
        parent, kind, fingerprint, source.num_bytes, lambda path: tfds_builders.prepare(source.make_builder(path))
    )
    written = next(folder.rglob("dataset_info.json")).parent
    builder = tfds.builder_from_directory(written)  # Workers need a builder that can be pickled.
    return builder.as_data_source(source.split, decoders={"image": tfds.decode.SkipDecoding()})


def _decode(record: dict[str, Any], size: int, upright: bool) -> dict[str, Any]:
    """Decodes a record. Returns `image` (uint8 `[S, S, 3]`), `name`, `labels`, and `problem` ("" if there is none)."""
    image, problem = np.zeros((size, size, 3), np.uint8), ""
    try:
        image = decode_image(record["image"], size, upright=upright)
    except InputError as error:
        problem = str(error)
    return {"image": image, "name": record["image_name"].decode(), "labels": record["labels"], "problem": problem}


def _examine(path: Path, folders: Sequence[Path]) -> tuple[int, int] | str:
    """Returns the size and modification time of a photo, or its problem. Links must lead into `folders`, if any."""
    target = Path(os.path.realpath(path))
    if folders and not any(target.is_relative_to(folder) for folder in folders):
        remedy = "copy the photo into it, or link the whole folder of photos"
        return f"{path}: a link to {target}, outside of the data set; {remedy}"
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
