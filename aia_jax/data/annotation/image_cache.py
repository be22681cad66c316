"""Prepares copies of splits. A copy is a memory-mapped array of resized images. It is kept until its sources change.

    <cache>/<dataset>-<hash of `place`>/<split>-<S>px-<fingerprint>/       images.npy  targets.npy  split.json

`place` and `fingerprint` are fields of `Source`. Augmentation keeps S x S pixels, so each photo is resized once.
"""

import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from aia_jax.data import scenes
from aia_jax.data.annotation.annotations import CUSTOM, Annotations
from aia_jax.data.cache import cache_root, cached_directory
from aia_jax.data.image_decoding import decode_image
from aia_jax.data.mapped_rows import RowWriter
from aia_jax.data.pipeline import map_ahead
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import list_problems

_VERSION = 1  # version of the code below; increase it when a change of the code changes the copies
LoadedPhoto = tuple[str, np.ndarray, np.ndarray | str]


class Source(NamedTuple):
    """The sources of a prepared copy.

    Attributes:
        place: location of the sources, such as the folder of the data. Each location has its own cache folder.
        fingerprint: hash of the sources. It changes when the sources change.
        problems: one line for each photo that cannot be read.
        load: function from a row number and a size S to a name, a target `[C]`, and an image `[S, S, 3]` or a problem.
    """

    dataset: str
    split: str
    place: str
    labels: tuple[str, ...]
    fingerprint: str
    num_images: int
    problems: tuple[str, ...]
    load: Callable[[int, int], LoadedPhoto]


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
    rows = [(name, str(path)) for name, path in paths.items()]
    return Source(
        dataset=dataset,
        split=split,
        place=str(Path(root).resolve()),
        labels=annotations.labels,
        fingerprint=_hash(annotations.labels, rows, files, annotations.targets.tobytes().hex()),
        num_images=len(readable),
        problems=tuple(file for file in files if isinstance(file, str)),
        # A user's photos need the rotation in their EXIF data. The published data sets were prepared without it.
        load=partial(_load_photo, annotations.take(readable), dataset == CUSTOM),
    )


def scenes_source(split: str, seed: int, indices: range, size: int) -> Source:
    """Returns the source of generated scenes. Scenes are drawn at the size of the copy, `size` x `size` pixels."""
    folder = Path(scenes.__file__).parent
    code = "".join((folder / name).read_text(encoding="utf-8") for name in ("dataset.py", "painting.py"))
    return Source(
        dataset="scenes",
        split=split,
        place=f"seed {seed}, {indices}, {size} px",
        labels=scenes.LABELS,
        fingerprint=_hash(seed, repr(indices), size, code),
        num_images=len(indices),
        problems=(),
        load=partial(_load_scene, seed, indices),
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
        rows = range(source.num_images)
        loaded = map_ahead(partial(source.load, size=size), rows, config_data.num_workers)
        description = f"{source.dataset} {source.split}: resizing to {size} px"
        names, targets, problems = [], [], list(source.problems)
        with RowWriter(directory / "images.npy", (size, size, 3), np.uint8) as images:
            for name, target, image in tqdm(loaded, description, len(rows), unit="img", mininterval=0.5):
                if isinstance(image, str):
                    problems.append(f"{name}: {image}")
                else:
                    images.extend(image[None])
                    names.append(name)
                    targets.append(target)
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


def _load_photo(annotations: Annotations, upright: bool, row: int, size: int) -> LoadedPhoto:
    path = annotations.image_paths[row]
    try:
        data = path.read_bytes()
    except OSError as error:  # perhaps temporary, so the photo is not left out of the copy
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        image = decode_image(data, size, upright=upright)
    except InputError as error:
        image = str(error)
    return annotations.image_names[row], annotations.targets[row], image


def _load_scene(seed: int, indices: range, row: int, size: int) -> LoadedPhoto:
    scene = scenes.draw(seed, indices[row], size)
    return f"scene_{indices[row]:06d}.png", np.isin(scenes.LABELS, scene.labels).astype(np.uint8), scene.image


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
    return status.st_size, status.st_mtime_ns


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
