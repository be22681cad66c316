"""Writes and opens records of photos: the original files of a split in ArrayRecord shards. Needs the extra `tfds`.

    <root>/<Folder>/train.json  test.json  records/<split>-<fingerprint>/       shards and facts of TFDS, photos.txt

The fingerprint is a hash of the names, the labels and the targets of the split. photos.txt has a hash of the files.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from aia_jax.data.annotation.annotations import CUSTOM, FOLDERS, SPLITS, Annotations, read_annotations
from aia_jax.data.annotation.channel_stats import CUSTOM_STATS, read_channel_stats
from aia_jax.data.annotation.image_cache import photo_source
from aia_jax.data.cache import cached_directory, damaged_files
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import disk_error, os_errors_as_input_errors, write_json
from aia_jax.utils.messages import list_problems
from aia_jax.utils.packages import import_with_extra

_FOLDER = "records"
_PHOTOS = "photos.txt"
_ADVICE = "--output or, for a URL, TMPDIR names another place"


def write_dataset(root: Path, dataset: str, output: Path) -> dict[str, int]:
    """Writes the records of all splits to the folder `output`, which can then be `config.data.root`.

    Unless `output` is `root`, it also gets the annotation files and, for custom data, the channel statistics. Records
    that are complete and up to date are kept.

    Returns:
        The number of photos in each split.

    Raises:
        InputError: the extra `tfds` is not installed, annotations or photos cannot be used, the disk is full, or
            `output` has other data.
    """
    annotations = {split: read_annotations(root, dataset, split) for split in SPLITS}
    documents = {f"{split}.json": _document(rows) for split, rows in annotations.items()}
    if dataset == CUSTOM:
        documents[CUSTOM_STATS] = dict(zip(("mean", "std"), read_channel_stats(root), strict=True))
    folder, is_copy = output / FOLDERS[dataset], output.resolve() != root.resolve()
    if is_copy:
        names = ("train.json", _FOLDER)
        check_replaceable(output, dataset, [f"{FOLDERS[dataset]}/{name}" for name in names if (folder / name).exists()])
    for split, rows in annotations.items():
        _write_records(root, dataset, split, rows, output)
    if is_copy:
        with os_errors_as_input_errors(output, None, _ADVICE):
            for name, document in documents.items():
                write_json(folder / name, document)
    return {split: len(rows) for split, rows in annotations.items()}


def check_replaceable(output: Path | str, dataset: str, names: Iterable[str]) -> None:
    """Raises InputError if `output` has annotations without records, which `write_dataset` would replace.

    Args:
        output: a folder or a URL.
        names: paths of the files, relative to `output`.
    """
    folder = PurePosixPath(FOLDERS[dataset])
    paths = [PurePosixPath(name.lstrip("/")) for name in names]
    has_records = any((folder / _FOLDER) in (path, *path.parents) for path in paths)
    if folder / "train.json" in paths and not has_records:
        where = f"{output}/{FOLDERS[dataset]}".rstrip("/")
        raise InputError(f"{where} has other data, whose train.json would be replaced; --output names another place")


class PhotoRecords:
    """The records of a split. Indexing reads a record, and returns the name and the bytes of a photo.

    Args:
        folder: folder of the records, for error messages.
        source: the records; see `tfds_builders.record_source`.

    Raises:
        InputError: (when indexing) the record cannot be read.
    """

    def __init__(self, folder: Path, source: Sequence[dict[str, Any]]):
        self.folder, self._source = folder, source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> tuple[str, bytes]:
        try:
            record = self._source[row]
            return record["image_name"].decode(), record["image"]
        except Exception as error:  # array_record and TFDS raise errors of several types
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            problem = f"record {row} in {self.folder} cannot be read ({reason:.300})"
            raise InputError(f"{problem}; copy the folder again, or write it with aia prepare --output") from error


def open_records(root: str | Path, dataset: str, split: str, annotations: Annotations) -> PhotoRecords:
    """Returns the records of a split. Reads no photo.

    Raises:
        InputError: the extra `tfds` is not installed, or the records are absent, incomplete or of other annotations.
    """
    builders = _import_builders()
    parent = Path(root) / FOLDERS[dataset] / _FOLDER
    folder = parent / f"{split}-{_fingerprint(annotations)}"
    remedy = f"`aia prepare {dataset} --root PHOTOS --output DIR` writes them; DIR becomes config.data.root"
    if not folder.is_dir():
        others = ", ".join(sorted(path.name for path in parent.glob(f"{split}-*/")))
        found = f"{parent} has {others}, whose names, labels or order differ" if others else f"{folder} does not exist"
        raise InputError(f"config.data.placement='stream' needs records of the {split} split, but {found}; {remedy}")
    if problems := damaged_files(folder):
        raise InputError(f"damaged records:{list_problems(problems)}\nCopy {folder} again, or: {remedy}")
    builder = builders.AnnotatedPhotos(dataset, {split: annotations}, data_dir=folder)
    return PhotoRecords(folder, builders.record_source(builder, split))


def _write_records(root: Path, dataset: str, split: str, annotations: Annotations, output: Path) -> None:
    builders = _import_builders()
    source = photo_source(root, dataset, split, annotations)
    if source.problems:
        count = len(source.problems)
        raise InputError(f"{dataset} {split}: {count:,} photo(s) cannot be used:{list_problems(source.problems)}")
    parent, fingerprint = output / FOLDERS[dataset] / _FOLDER, _fingerprint(annotations)

    def write(directory: Path) -> None:
        try:
            builders.prepare(builders.AnnotatedPhotos(dataset, {split: annotations}, data_dir=directory))
        except RuntimeError as error:  # of array_record
            if reason := disk_error(error):
                raise InputError(f"{parent}: {reason}, the {split} records could not be written; {_ADVICE}") from error
            raise
        (directory / _PHOTOS).write_text(source.fingerprint)

    photos = parent / f"{split}-{fingerprint}" / _PHOTOS
    if photos.is_file() and photos.read_text() != source.fingerprint:
        shutil.rmtree(photos.parent)
    num_bytes = sum(path.stat().st_size for path in annotations.image_paths)
    cached_directory(parent, split, fingerprint, num_bytes, write, _ADVICE)


def _import_builders() -> ModuleType:
    use = "records of photos (aia prepare --output, config.data.placement='stream')"
    for module in ("array_record", "importlib_resources", "tensorflow_datasets"):
        import_with_extra(module, use, "tfds")
    from aia_jax.data.annotation import tfds_builders

    return tfds_builders


def _fingerprint(annotations: Annotations) -> str:
    digest = hashlib.sha256(json.dumps([annotations.labels, annotations.image_names]).encode())
    digest.update(annotations.targets.tobytes())
    return digest.hexdigest()[:12]


def _document(annotations: Annotations) -> dict[str, Any]:
    """Returns the content of an annotation file."""
    rows = zip(annotations.image_names, annotations.targets, strict=True)
    samples = [
        {"image_name": name, "image_labels": [annotations.labels[label] for label in target.nonzero()[0]]}
        for name, target in rows
    ]
    return {"labels": annotations.labels, "samples": samples}
