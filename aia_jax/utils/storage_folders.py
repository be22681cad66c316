"""Downloads folders of object storage to the cache, and uploads folders. Copies only what has changed."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import exclusive_lock, os_errors_as_input_errors
from aia_jax.utils.folder_copy import ADVICE, FolderCopy
from aia_jax.utils.paths import cache_root
from aia_jax.utils.storage import url_name


def copy_place(kind: str, url: str, cache_dir: str = "") -> Path:
    """Returns the place of a copy in the cache: `<cache>/<kind>/<last part of the URL>-<hash of the URL>`."""
    name = re.sub(r"[^\w.-]", "_", url_name(url))[:50]
    return cache_root(cache_dir) / kind / f"{name}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:12]}"


def download_folder(url: str, cache_dir: str = "") -> Path:
    """Returns the folder of the cache that is a copy of the folder `url`. Copies what is new or changed there.

    Checkpoints that are not complete are left out. Other processes of this machine wait.

    Args:
        url: folder in object storage, such as "gs://bucket/folder".
        cache_dir: folder of the caches; "": see `cache_root`.

    Raises:
        InputError: there are no files, or the storage or the disk refuses it.
    """
    folder = copy_place("buckets", url, cache_dir)
    with locked_copy(url, folder):
        pass
    return folder


@contextlib.contextmanager
def locked_copy(url: str, folder: Path, *, empty: bool = False) -> Iterator[FolderCopy]:
    """Makes `folder` an exact copy of the folder `url`, and yields the copy. Other processes wait until the end.

    Raises InputError as `download_folder` does; not for a folder without files if `empty` is set.
    """
    with os_errors_as_input_errors(folder, None, ADVICE):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder.with_name(f"{folder.name}.lock")):
        copy = FolderCopy(url, folder)
        copy.discard_changes()
        copy.bring_down(f"download {url_name(url)}")
        if not empty and not copy.here():
            raise InputError(f"{url} holds no files; check the name, which must be that of a folder")
        yield copy


def upload_folder(folder: Path, url: str) -> None:
    """Makes the folder `url` of object storage a copy of a local folder. A second call sends only what has changed.

    Objects that this machine did not send stay there.

    Raises:
        InputError: the folder has no files, or the storage refuses it. The same call then continues.
    """
    copy = _upload(folder, url)
    if not copy.here():
        raise InputError(f"{folder} holds no files to copy to {url}")
    copy.compare()
    copy.send_changes(title=f"upload {url_name(url)}")


def other_files(url: str) -> list[str]:
    """Returns the relative names of the files in `url` that `upload_folder` has not sent from this machine.

    Raises InputError if the storage refuses it, for example without a bucket of this name.
    """
    return sorted(_upload(Path(), url).not_sent())


def _upload(folder: Path, url: str) -> FolderCopy:
    place = copy_place("uploads", url)
    return FolderCopy(url, folder, place.with_name(f"{place.name}.journal"))
