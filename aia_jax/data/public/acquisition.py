"""Downloads the missing files of a public data set into the layout of the reference implementation.

    <root>/<Folder>/train.json  test.json  images/...     the files that are used later
    <root>/<Folder>/ssgrl/  vg500_vocabulary.txt          sources of VG-500's annotations
    <root>/<Folder>/downloads/                            archives and partial downloads

Existing files stay: only missing files, and photos that cannot be opened, are written.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from aia_jax.data.annotation.annotations import FOLDERS, SPLITS, Annotations, read_annotations
from aia_jax.data.cache import check_room, os_errors_as_input_errors
from aia_jax.data.public.archives import unpack_photos
from aia_jax.data.public.download import check_unchanged, download
from aia_jax.data.public.inspection import Inspection, first_names
from aia_jax.data.public.kaggle import download_from_kaggle
from aia_jax.data.public.public_datasets import PublicDataset
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_bytes

DOWNLOADS = "downloads"


def fetch_annotations(root: Path, dataset: PublicDataset) -> None:
    """Downloads `train.json` and `test.json` if they are absent, or makes them from SSGRL's files.

    Raises:
        InputError: a download fails, or existing files cannot be used.
    """
    folder = root / FOLDERS[dataset.name]
    absent = [split for split in SPLITS if not (folder / f"{split}.json").exists()]
    try:
        made = {split: read_annotations(root, dataset.name, split) for split in absent}  # from SSGRL's files
    except InputError:
        for file in dataset.annotations:
            if not (folder / file.path).exists():
                download(file, folder)
        made = {split: read_annotations(root, dataset.name, split) for split in absent}
    for split, annotations in made.items():
        if not (folder / f"{split}.json").exists():
            write_bytes(folder / f"{split}.json", _to_json(annotations))


def fetch_photos(dataset: PublicDataset, found: Inspection) -> None:
    """Downloads the missing and unreadable photos to their places. Photos that no source has stay missing.

    Raises:
        InputError: a download fails, an archive cannot be used, or there is no room.
    """
    targets = {path.name: path for path in (*found.missing, *found.unreadable)}
    if dataset.kaggle:
        _fetch_from_kaggle(dataset.kaggle, found.folder / DOWNLOADS / "kaggle", targets)
    else:
        _fetch_from_archives(dataset, found.folder, targets)


def list_missing_files(dataset: PublicDataset, found: Inspection) -> str:
    """A tree of the missing files with their counts, sizes and download addresses; "" if none is missing."""
    no_annotations = len(found.annotations) < len(SPLITS)
    photos = (*found.missing, *found.unreadable)
    files = []
    if no_annotations:
        files = [(file.path, file.url) for file in dataset.annotations if not (found.folder / file.path).exists()]
    if no_annotations or photos:
        total = sum(dataset.num_images.values())
        text = f"{total:,} photos" if no_annotations else f"{len(photos):,} photos: {first_names(photos)}"
        source = f"; https://www.kaggle.com/datasets/{dataset.kaggle} has them in its images/" if dataset.kaggle else ""
        files.append(("images/", text + source))
        for file in dataset.archives:
            files.append((file.path, f"{file.num_bytes:,} bytes, {file.url}; or unpacked in this folder"))
    lines = [f"  {found.folder}/", *(f"    {path:40} {text}" for path, text in files)]
    return "\n".join(lines) if files else ""


def _to_json(annotations: Annotations) -> bytes:
    samples = [
        {"image_name": name, "image_labels": [annotations.labels[column] for column in row.nonzero()[0]]}
        for name, row in zip(annotations.image_names, annotations.targets, strict=True)
    ]
    return json.dumps({"samples": samples, "labels": annotations.labels}).encode()


def _fetch_from_kaggle(handle: str, cache: Path, targets: Mapping[str, Path]) -> None:
    with os_errors_as_input_errors(cache, None, "--root names another place"):
        source = download_from_kaggle(handle, cache)
        is_ours = source.resolve().is_relative_to(cache.resolve())
        for name, path in _find(source, targets).items():
            targets[name].parent.mkdir(parents=True, exist_ok=True)
            if is_ours:
                shutil.move(path, targets[name])
            else:  # Kaggle's own notebooks have the files in a read-only folder.
                targets[name].unlink(missing_ok=True)
                targets[name].symlink_to(path.resolve())
        shutil.rmtree(cache, ignore_errors=True)


def _find(source: Path, targets: Mapping[str, Path]) -> dict[str, Path]:
    """Regular files below `source` by name. If several folders have a name, the one with most targets wins."""
    folders = []
    for directory, _, files in os.walk(source):
        here = {name: Path(directory, name) for name in files if name in targets}
        folders.append({name: path for name, path in here.items() if not path.is_symlink()})
    found: dict[str, Path] = {}
    for folder in sorted(folders, key=len):
        found |= folder
    return found


def _fetch_from_archives(dataset: PublicDataset, folder: Path, targets: Mapping[str, Path]) -> None:
    num_bytes = _bytes_needed(dataset, folder, len(targets))
    with os_errors_as_input_errors(folder, num_bytes, "--root names another place"):
        check_room(folder, num_bytes)
        remaining = dict(targets)
        for file in dataset.archives:
            archive = folder / file.path
            if not remaining:
                break
            if archive.exists():
                check_unchanged(archive)
            else:
                download(file, folder)
            written = unpack_photos(archive, remaining)
            remaining = {name: path for name, path in remaining.items() if name not in written}


def _bytes_needed(dataset: PublicDataset, folder: Path, num_photos: int) -> int:
    """Approximate size of the downloads and of the unpacked photos, which archives hardly compress."""
    num_bytes = sum(file.num_bytes for file in dataset.archives) * num_photos // sum(dataset.num_images.values())
    for file in dataset.archives:
        archive = folder / file.path
        if not archive.exists():
            part = archive.with_name(f"{archive.name}.part")
            num_bytes += max(file.num_bytes - (part.stat().st_size if part.exists() else 0), 0)
    return num_bytes
