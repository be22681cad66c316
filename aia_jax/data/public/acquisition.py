"""Downloads the missing files of a public data set into the layout of the reference implementation.

    <root>/<Folder>/train.json  test.json  images/...     the files that training and evaluation read
    <root>/<Folder>/ssgrl/  vg500_vocabulary.txt          for VG-500, the files that are read instead of the two lists
    <root>/<Folder>/downloads/                            archives and partial downloads

Only missing files, and photos that cannot be opened, are written. Other files are not changed.
"""

import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from aia_jax.data.annotation.annotations import SPLITS
from aia_jax.data.public.download import download
from aia_jax.data.public.inspection import Inspection, first_names
from aia_jax.data.public.public_datasets import PublicDataset
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_room, os_errors_as_input_errors, write_bytes

DOWNLOADS = "downloads"

_TOKEN = (
    "make a token at https://www.kaggle.com/settings/api (a free account, «Generate New Token») and put it into "
    "~/.kaggle/access_token or the environment variable KAGGLE_API_TOKEN"
)


def fetch_photos(dataset: PublicDataset, found: Inspection) -> None:
    """Downloads the photos in `found.missing` and `found.unreadable`. Photos that no source has stay missing.

    Raises:
        InputError: a download fails, an archive cannot be used, or the disk has no room for an archive.
        OSError: the disk has no room for the files from Kaggle.
    """
    targets = {path.name: path for path in (*found.missing, *found.unreadable)}
    if dataset.kaggle:
        _fetch_from_kaggle(dataset.kaggle, found.folder / DOWNLOADS / "kaggle", targets)
    else:
        _fetch_from_archives(dataset, found.folder, targets)


def download_from_kaggle(handle: str, folder: Path) -> Path:
    """Downloads the newest version of a data set on Kaggle with kagglehub, and returns the folder with its files.

    Args:
        handle: owner and name of the data set, as "owner/name".
        folder: kagglehub's cache for this call. A later call with this folder continues an interrupted download.

    Raises:
        InputError: kagglehub is not installed, or the download fails.
        OSError: the disk is full or not writable.
    """
    try:
        import kagglehub
    except ImportError:
        raise InputError(
            "the photos are on Kaggle, and downloading from there needs one more package: pip install kagglehub. If "
            f"Kaggle then asks who you are, {_TOKEN}"
        ) from None
    url = f"https://www.kaggle.com/datasets/{handle}"
    os.environ["KAGGLEHUB_CACHE"] = str(folder.absolute())
    try:
        return Path(kagglehub.dataset_download(handle))
    except Exception as error:  # kagglehub's errors have no common base class.
        if isinstance(error, OSError) and error.errno is not None:  # an error of the operating system, not of HTTP
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise InputError(f"Kaggle denies access to {url} ({status}): {_TOKEN}") from None
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        advice = f"the same command continues. If the problem persists, remove {folder}"
        raise InputError(f"{url} cannot be downloaded: kagglehub says: {reason}; {advice}") from None
    finally:
        del os.environ["KAGGLEHUB_CACHE"]


def unpack_photos(archive: Path, targets: Mapping[str, Path]) -> set[str]:
    """Unpacks those photos in `targets` that a zip file has, and returns their names.

    Each photo is written atomically after a check of its CRC, which the zip file has.

    Args:
        targets: dict from file name of each wanted photo to the path to write. Folders in the zip file are ignored.

    Raises:
        InputError: the zip file is damaged or encrypted.
    """
    member = None
    try:
        with zipfile.ZipFile(archive) as file:
            members = _members(file, targets)
            bar = tqdm(members.items(), f"{archive.name}: unpacking", unit="img", mininterval=0.5, dynamic_ncols=True)
            for name, member in bar:
                with file.open(member) as opened:
                    content = opened.read(member.file_size + 1)  # limits the memory if the stated size is wrong
                write_bytes(targets[name], content)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        problem = f"its member {member.filename!r} is damaged ({error})" if member else error
        advice = "remove it, and the same command downloads it again"
        raise InputError(f"{archive} cannot be used: {problem}; {advice}") from None
    return set(members)


def list_missing_files(dataset: PublicDataset, found: Inspection) -> str:
    """Returns a download command, and the name, size and address of each missing file; "" if no file is missing."""
    no_annotations = len(found.annotations) < len(SPLITS)
    photos = (*found.missing, *found.unreadable)
    if not no_annotations and not photos:
        return ""
    absent = [file for file in dataset.annotations if no_annotations and not (found.folder / file.path).exists()]
    total = sum(dataset.num_images.values())
    text = f"{total:,} photos" if no_annotations else f"{len(photos):,} photos: {first_names(photos)}"
    source = f"; https://www.kaggle.com/datasets/{dataset.kaggle} has them in its images/" if dataset.kaggle else ""
    files = [(file.path, file.url) for file in absent] + [("images/", text + source)]
    for file in dataset.archives:
        files.append((file.path, f"{file.num_bytes:,} bytes, {file.url}; or unpacked in this folder"))
    command = f"`aia prepare {dataset.name} --root {found.folder.parent}`"
    lines = [f"{command} downloads what is missing; or put there by hand", f"  {found.folder}/"]
    return "\n".join(["", *lines, *(f"    {path:40} {text}" for path, text in files)])


def _fetch_from_kaggle(handle: str, cache: Path, targets: Mapping[str, Path]) -> None:
    source = download_from_kaggle(handle, cache)
    photos = [path for path in source.rglob("*") if path.name in targets and path.is_file()]
    found = {path.name: path for path in sorted(photos, key=lambda path: path.stat().st_size)}  # the largest of a name
    for name, path in found.items():
        write_bytes(targets[name], path.read_bytes())  # Kaggle's own notebooks have the files in a read-only folder.
    shutil.rmtree(cache, ignore_errors=True)


def _fetch_from_archives(dataset: PublicDataset, folder: Path, targets: Mapping[str, Path]) -> None:
    # Approximate room for the unpacked photos and the downloads. Photos are about as large as their archives.
    num_bytes = sum(file.num_bytes for file in dataset.archives) * len(targets) // sum(dataset.num_images.values())
    for file in dataset.archives:
        if not (archive := folder / file.path).exists():
            part = archive.with_name(f"{archive.name}.part")
            num_bytes += max(file.num_bytes - (part.stat().st_size if part.exists() else 0), 0)
    with os_errors_as_input_errors(folder, num_bytes, "--root names another place"):
        check_room(folder, num_bytes)
        for file in dataset.archives:
            if not targets:
                break
            if not (folder / file.path).exists():
                download(file, folder)
            written = unpack_photos(folder / file.path, targets)
            targets = {name: path for name, path in targets.items() if name not in written}


def _members(file: zipfile.ZipFile, targets: Mapping[str, Path]) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for member in file.infolist():
        name = member.filename.replace("\\", "/").rpartition("/")[2]
        if name in targets and not member.is_dir():
            found.setdefault(name, member)
    return found
