"""Download one of the four public data sets, check it and count its images and labels.

    aia prepare corel5k --root datasets

The photos of corel5k, espgame and iaprtc12 come from Kaggle through the package kagglehub, those of vg500 from Visual
Genome (15 GB, and another 15 GB unpacked).
"""

import argparse
import signal
from pathlib import Path

from ml_collections import ConfigDict

from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import Parser, local, positive
from aia_jax.data.annotation.annotations import FOLDERS, SPLITS
from aia_jax.data.annotation.datasets import load_split
from aia_jax.data.public.acquisition import DOWNLOADS, fetch_photos, list_missing_files
from aia_jax.data.public.download import download
from aia_jax.data.public.inspection import Inspection, inspect_dataset
from aia_jax.data.public.public_datasets import PUBLIC_DATASETS, PublicDataset
from aia_jax.utils.errors import InputError, Interrupted
from aia_jax.utils.files import exclusive_lock, os_errors_as_input_errors


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia prepare`."""
    parser.add_argument("dataset", choices=PUBLIC_DATASETS, help="name of the data set")
    root = f"folder of {', '.join(FOLDERS[name] for name in PUBLIC_DATASETS)}, as config.data.root; default: datasets"
    parser.add_argument("--root", type=local, default=Path("datasets"), metavar="FOLDER", help=root)
    parser.add_argument("--check", action="store_true", help="only check and count; download and write nothing")
    size = "also make the copy of S x S pixels that training reads; --root must equal the later --config.data.root"
    parser.add_argument("--image_size", type=positive, metavar="S", help=size)


def run(arguments: argparse.Namespace) -> None:
    """Downloads missing files, and prints a report of the files.

    Raises:
        InputError: files are still missing (the message lists the files), or the photos cannot be resized.
        Interrupted: Ctrl-C stopped the command. Downloaded files are kept.
    """
    dataset, root = PUBLIC_DATASETS[arguments.dataset], arguments.root
    if arguments.check and arguments.image_size:
        raise InputError("--check writes nothing, but --image_size writes a copy; give one of them")
    with exit_on_sigterm():
        found = inspect_dataset(root, dataset)
        print(found.report(), flush=True)
        if not arguments.check and not found.is_complete:
            found = _download(root, dataset, found)
            print(found.report(), flush=True)
        if not found.is_complete:
            missing = list_missing_files(dataset, found)
            raise InputError(f"{found.folder} is not complete, or not as published; see above{missing}")
        print(f"complete, as published; --config.data.root={root}")
        downloads = found.folder / DOWNLOADS
        if num_bytes := sum(path.stat().st_size for path in downloads.glob("*.zip")):
            print(f"{downloads} ({num_bytes / 1e9:,.1f} GB) is no longer needed and may be removed")
        if size := arguments.image_size:
            fields = {"name": dataset.name, "root": str(root), "cache_dir": "", "skip_corrupt": False, "num_workers": 0}
            for split in SPLITS:
                print(f"{split}: {len(load_split(ConfigDict(fields), split, size)):,} images of {size} x {size} pixels")


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
