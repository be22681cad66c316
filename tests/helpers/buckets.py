"""A fake object storage: a folder on disk behind the interface of fsspec, so that no server and no extra is needed."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from aia_jax.utils import storage
from aia_jax.utils.files import write_bytes


class FakeStorage(DirFileSystem):
    """Buckets in a folder. Counts requests, and refuses them like a storage without network or rights.

    Attributes:
        requests: `(method, path)` of each request that writes or reads an object.
        refused: a part of the paths that are refused; None: no path.
        error: the error of a refused request.
    """

    cachable = False

    def __init__(self, folder: Path):
        super().__init__(path=str(folder), fs=LocalFileSystem(auto_mkdir=True))
        self.folder = folder
        self.requests: list[tuple[str, str]] = []
        self.refused: str | None = None
        self.error: Exception = PermissionError("Forbidden")

    def _check(self, method: str, path: str) -> None:
        self.requests.append((method, path))
        if self.refused is not None and self.refused in path:
            raise self.error

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        self._check("put", path)
        write_bytes(self.folder / path, value)  # an object is never there in part

    def put_file(self, lpath: str, path: str, **options: Any) -> None:
        self._check("put", path)
        super().put_file(lpath, path, **options)

    def cat_file(self, path: str, **options: Any) -> bytes:
        self._check("get", path)
        return super().cat_file(path, **options)

    def get_file(self, path: str, lpath: str, **options: Any) -> None:
        self._check("get", path)
        super().get_file(path, lpath, **options)

    def rm_file(self, path: str) -> None:
        self._check("delete", path)
        super().rm_file(path)
        with contextlib.suppress(OSError):  # object storage has no empty folders
            while (path := path.rpartition("/")[0]).count("/"):
                (self.folder / path).rmdir()

    def moved(self, method: str) -> list[str]:
        """Returns the paths of the requests of a method so far, and forgets all requests."""
        found = [path for name, path in self.requests if name == method]
        self.requests.clear()
        return found


def use_storage(fake: FakeStorage, setattr: Callable[[Any, str, Any], None] = setattr) -> None:
    """Makes `gs://` and `s3://` mean a fake storage."""
    (fake.folder / "bucket").mkdir(parents=True, exist_ok=True)
    setattr(storage, "_PACKAGES", dict.fromkeys(storage._PACKAGES, "fsspec"))
    setattr(storage, "_file_system", lambda scheme: fake)
