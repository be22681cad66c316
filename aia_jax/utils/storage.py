"""Opens object storage, whose URLs start with `gs://` or `s3://`, with fsspec. Needs the extra `cloud`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import import_with_extra

if TYPE_CHECKING:
    import fsspec

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_CONNECT_SECONDS, _READ_SECONDS = 10, 60
_URL = re.compile(rf"({'|'.join(_PACKAGES)})://")


def is_url(given: Any) -> bool:
    """Returns whether `given` is a URL of object storage."""
    return isinstance(given, str) and _URL.match(given) is not None


def open_storage(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of a URL, and the path of the URL in it, `bucket/folder`.

    Credentials and addresses come from the environment, as gcsfs and s3fs document.

    Raises InputError if the URL has no bucket, or if the package for it is not installed.
    """
    scheme, _, path = url.partition("://")
    path = path.rstrip("/")
    if not path.partition("/")[0] or ".." in PurePosixPath(path).parts:
        raise InputError(f"{url} is no URL of object storage; give {scheme}://BUCKET/FOLDER")
    package = _PACKAGES[scheme]
    # Without it, gcsfs asks for the kind of each bucket, which needs more rights.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import_with_extra(package, f"{scheme}://", "cloud", package)
    with errors_of_storage(url):
        return _file_system(scheme), path


def _file_system(scheme: str) -> fsspec.AbstractFileSystem:
    """Returns the file system of a scheme. Where nothing answers, it raises an error after less than a minute."""
    import fsspec

    if scheme == "s3":
        return fsspec.filesystem(scheme, config_kwargs={"connect_timeout": _CONNECT_SECONDS})
    import aiohttp

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of errors that it also raises
    timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
    return fsspec.filesystem(scheme, requests_timeout=timeout)


@contextlib.contextmanager
def errors_of_storage(url: str) -> Iterator[None]:
    """Turns the errors of gcsfs and s3fs into an InputError that names the URL and the problem."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such bucket, folder or file; check the name ({_reason(error)})") from error
    except Exception as error:  # gcsfs, s3fs, aiohttp and botocore raise errors of many types
        if advice := _advice(error):
            raise InputError(f"{url}: {advice} ({_reason(error)})") from error
        raise


def _advice(error: Exception) -> str:
    """Returns what is wrong; "" if `error` is none of object storage."""
    kind = type(error)
    text, module = f"{kind.__name__} {error}", kind.__module__.partition(".")[0]
    if getattr(error, "filename", None):  # of the local disk
        return ""
    if isinstance(error, PermissionError) or re.search(r"\b40[13]\b|Forbidden|AccessDenied|Credential", text):
        return "no permission; check the credentials and the rights of this account"
    if re.search(r"Bad Request|Invalid bucket name|InvalidBucketName|ParamValidation", text):
        return "the storage refuses this name; check the name of the bucket"
    if module in ("aiohttp", "botocore", "aiobotocore", "gcsfs", "google", "json", "requests", "s3fs"):
        return "the storage did not answer as expected; check its address and the network"
    if isinstance(error, OSError) and (isinstance(error, ConnectionError | TimeoutError) or error.errno is None):
        return "the storage did not answer as expected; check its address and the network"
    return ""


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


@contextlib.contextmanager
def open_file(place: str) -> Iterator[BinaryIO]:
    """Opens a local file, or an object by its URL, to read it. Raises InputError as `errors_of_storage` does."""
    if not is_url(place):
        with open(place, "rb") as opened:
            yield opened
        return
    storage, path = open_storage(place)
    with errors_of_storage(place), storage.open(path, "rb") as opened:
        yield opened


def read_url(url: str) -> bytes:
    """Returns the content of an object. Raises InputError if it cannot be read."""
    storage, path = open_storage(url)
    with errors_of_storage(url):
        return storage.cat_file(path)


def write_object(storage: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Writes an object. gcsfs sends some contents in a request that loses bytes, which this function avoids."""
    # gcsfs puts a line end and a boundary after the content: "\r" at the end becomes a part of the line end.
    lossy = "gs" in _schemes(storage) and (content.endswith(b"\r") or b"\n--==0==" in content)
    storage.pipe_file(path, content, **({"chunksize": len(content)} if lossy else {}))  # one chunk, sent as it is


def _schemes(storage: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (storage.protocol,) if isinstance(storage.protocol, str) else tuple(storage.protocol)


def url_name(url: str) -> str:
    """Returns the last part of a URL."""
    return os.path.basename(url.rstrip("/"))
