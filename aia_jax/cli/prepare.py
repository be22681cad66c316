"""Download one of the four public data sets, check it and count its images and labels.

    aia prepare corel5k --root datasets
    aia prepare vg500 --root datasets --output gs://BUCKET/datasets

The photos of corel5k, espgame and iaprtc12 come from Kaggle through the package kagglehub, those of vg500 from Visual
Genome (15 GB, and another 15 GB unpacked). The data set custom is the data that `aia import-labels` wrote to --root.

--output writes the original photos as records (ArrayRecord shards) beside their annotations, for training with
--config.data.placement=stream. Then --config.data.root names this output.
"""

import argparse
import contextlib
import signal
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import Parser, local, local_or_url, positive
from aia_jax.data.annotation.annotations import CUSTOM, FOLDERS, SPLITS
from aia_jax.data.annotation.datasets import load_split
from aia_jax.data.annotation.photo_records import check_replaceable, write_dataset
from aia_jax.data.public.acquisition import DOWNLOADS, fetch_photos, list_missing_files
from aia_jax.data.public.download import download
from aia_jax.data.public.inspection import Inspection, inspect_dataset
from aia_jax.data.public.public_datasets import PUBLIC_DATASETS, PublicDataset
from aia_jax.utils.errors import InputError, Interrupted
from aia_jax.utils.files import check_writable, exclusive_lock, os_errors_as_input_errors
from aia_jax.utils.storage import is_url
from aia_jax.utils.storage_folders import other_files, upload_folder


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia prepare`."""
    parser.add_argument("dataset", choices=(*PUBLIC_DATASETS, CUSTOM), help="name of the data set")
    root = f"folder of {', '.join(FOLDERS[name] for name in PUBLIC_DATASETS)}, as config.data.root; default: datasets"
    parser.add_argument("--root", type=local, default=Path("datasets"), metavar="FOLDER", help=root)
    parser.add_argument("--check", action="store_true", help="only check and count; download and write nothing")
    size = "also make the copy of S x S pixels that training reads; --root must equal the later --config.data.root"
    parser.add_argument("--image_size", type=positive, metavar="S", help=size)
    output = "also write the photos as records to a folder, or to a URL of object storage, gs:// or s3://"
    parser.add_argument("--output", type=local_or_url, metavar="DIR|URL", help=output)


def run(arguments: argparse.Namespace) -> None:
    """Downloads missing files, and prints a report of the files.

    Raises:
        InputError: files are still missing (the message lists the files), the photos cannot be resized, or the records
            cannot be written.
        Interrupted: Ctrl-C stopped the command. Downloaded files are kept.
    """
    name, root, size, output = arguments.dataset, arguments.root, arguments.image_size, arguments.output
    for flag in ("image_size", "output"):
        if arguments.check and getattr(arguments, flag):
            raise InputError(f"--check writes nothing, but --{flag} does; give one of them")
    if name == CUSTOM and not (size or output):
        raise InputError("the data set custom is not downloaded; give --output or --image_size to write a copy")
    if output and not is_url(output):
        check_writable(output)
    with exit_on_sigterm():
        if name != CUSTOM:
            _complete(root, PUBLIC_DATASETS[name], arguments.check)
        if size:
            fields = {"name": name, "root": str(root), "cache_dir": "", "skip_corrupt": False, "num_workers": 0}
            for split in SPLITS:
                print(f"{split}: {len(load_split(ConfigDict(fields), split, size)):,} images of {size} x {size} pixels")
        if output:
            _write_records(root, name, output)


def _complete(root: Path, dataset: PublicDataset, check: bool) -> None:
    """Inspects a data set and, unless `check` is set, downloads missing files. Prints reports."""
    found = inspect_dataset(root, dataset)
    print(found.report(), flush=True)
    if not check and not found.is_complete:
        found = _download(root, dataset, found)
        print(found.report(), flush=True)
    if not found.is_complete:
        missing = list_missing_files(dataset, found)
        raise InputError(f"{found.folder} is not complete, or not as published; see above{missing}")
    print(f"complete, as published; --config.data.root={root}")
    downloads = found.folder / DOWNLOADS
    if num_bytes := sum(path.stat().st_size for path in downloads.glob("*.zip")):
        print(f"{downloads} ({num_bytes / 1e9:,.1f} GB) is no longer needed and may be removed")


def _write_records(root: Path, name: str, output: Path | str) -> None:
    """Writes the records of a data set to a folder. For a URL, writes a temporary folder and uploads it."""
    if is_url(output):
        check_replaceable(output, name, other_files(output))
    with tempfile.TemporaryDirectory() if is_url(output) else contextlib.nullcontext(output) as folder:
        counts = write_dataset(root, name, Path(folder))
        if is_url(output):
            for lock in Path(folder).rglob("*.lock"):
                lock.unlink()
            upload_folder(Path(folder), output)
    for split, count in counts.items():
        print(f"{split}: {count:,} records")
    print(f"--config.data.root={output} --config.data.placement=stream")


def _download(root: Path, dataset: PublicDataset, found: Inspection) -> Inspection:
    """Downloads missing files where possible, and inspects the data set again."""
    downloads = found.folder / DOWNLOADS
    try:
        with os_errors_as_input_errors(downloads, None, "--root names another place"):
            downloads.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(downloads / "prepare.lock"):
                if len(found.annotations) < len(SPLITS):
                    for file in dataset.annotations:
                        if not (found.folder / file.path).exists():
                            download(file, found.folder)
                    found = inspect_dataset(root, dataset)
                    print(found.report(), flush=True)
                if found.missing or found.unreadable:
                    fetch_photos(dataset, found)
    except InputError as error:
        raise InputError(f"{error}{list_missing_files(dataset, found)}") from None
    except KeyboardInterrupt:
        message = f"interrupted; downloaded files are kept in {found.folder}, and the same command continues"
        raise Interrupted(signal.SIGINT, message) from None
    return inspect_dataset(root, dataset)
