"""Copies folders to and from object storage; see `utils.storage`. Needs the extra `cloud`."""

import functools
import hashlib
import json
import posixpath
import sys
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from aia_jax.data.cache import cache_root, cached_directory
from aia_jax.utils.errors import InputError
from aia_jax.utils.storage import errors_of_storage, is_url, open_storage

_VERSIONS = ("etag", "ETag", "md5Hash", "generation")  # fields of a listing that change with the content of an object


def local_root(root: str | Path) -> Path:
    """Returns `config.data.root` as a local folder. A URL is downloaded; see `download_folder`."""
    return download_folder(root) if is_url(root) else Path(root)


@functools.cache
def download_folder(url: str) -> Path:
    """Downloads all objects below a URL into the cache. Returns the folder.

    A process lists the objects once. They are downloaded again if their names, sizes or versions have changed.

    Raises:
        InputError: the URL has no objects or cannot be read, or the disk of the cache is full.
    """
    storage, path = open_storage(url)
    with errors_of_storage(url):
        found = storage.find(path, detail=True)
    objects = {key: info for key, info in sorted(found.items()) if not key.endswith("/")}
    names = [posixpath.relpath(key, path) for key in objects]
    if not names:
        raise InputError(f"{url} has no files; check the name of the bucket and of the folder")
    if outside := [name for name in names if ".." in PurePosixPath(name).parts]:
        raise InputError(f"{url} has the object {outside[0]!r}, which is no path of a file; remove it")
    facts = [(key, info["size"], *(str(info.get(field)) for field in _VERSIONS)) for key, info in objects.items()]

    def write(directory: Path) -> None:
        tqdm.write(f"downloading {url}, {num_bytes / 1e9:,.1f} GB", file=sys.stderr)
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
        with errors_of_storage(url):
            storage.get(list(objects), [str(directory / name) for name in names])

    num_bytes = sum(info["size"] for info in objects.values())
    parent = cache_root("") / f"remote-{_hash(url)[:8]}"
    return cached_directory(parent, "files", _hash(facts)[:12], num_bytes, write)


def upload_folder(folder: Path, url: str) -> None:
    """Uploads all files of a folder below a URL. Raises InputError if the storage cannot be written."""
    storage, path = open_storage(url)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = [file.relative_to(folder).as_posix() for file in files]
    with errors_of_storage(url):
        storage.put([str(file) for file in files], [f"{path}/{name}" for name in names])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
