"""Downloads files over HTTP atomically. A later call continues an interrupted download.

    <file>.part         the bytes downloaded so far
    <file>.part.json    {"url", "validator", "num_bytes"}: identifies the file on the server

A validator is a value for the HTTP header If-Range: a strong ETag, or the date of the last change. With this header, a
server sends the whole file if the file has changed. So a partial download never mixes two versions of a file.
"""

import hashlib
import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aia_jax.data.public.public_datasets import RemoteFile
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_room, os_errors_as_input_errors, write_json
from aia_jax.version import __version__

ATTEMPTS = 5  # largest number of consecutive attempts without progress
PAUSE = 1.0  # seconds before the second attempt; doubled for each later attempt
TIMEOUT = 60.0  # longest wait for the next bytes in seconds

_CHUNK = 1 << 20
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class _TemporaryError(Exception):
    """A failure after which another attempt may succeed."""


def download(file: RemoteFile, folder: Path) -> Path:
    """Downloads `file` to `folder / file.path` and returns this path. A later call continues an interrupted download.

    Raises:
        InputError: the download fails, the file differs from `file.git_blob`, or the disk is full or not writable.
    """
    path = folder / file.path
    part = path.with_name(f"{path.name}.part")
    with os_errors_as_input_errors(path.parent, file.num_bytes or None, "--root names another place"):
        path.parent.mkdir(parents=True, exist_ok=True)
        _download_part(file, part)
        if file.git_blob and git_blob_id(part) != file.git_blob:
            part.unlink()
            raise InputError(f"{file.url} is not the file that was published: its id in git is not {file.git_blob}")
        part.replace(path)
        _facts_path(part).unlink(missing_ok=True)
    return path


def git_blob_id(path: Path) -> str:
    """Returns the id of a file in a git repository: the SHA-1 of a header with the size, followed by the content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _download_part(file: RemoteFile, part: Path) -> None:
    """Downloads the rest of `part`. Fails after `ATTEMPTS` attempts without progress."""
    furthest, failures = _size(part), 0
    while True:
        try:
            _attempt(file, part)
            return
        except _TemporaryError as failure:
            failures = 1 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures == ATTEMPTS:
                kept = f"{_size(part):,} bytes are kept, and " if _known(file, part) else ""
                message = f"{file.url} cannot be downloaded: {failure}; {kept}the same command tries again"
                raise InputError(message) from None
            seconds = PAUSE * 2 ** (failures - 1)
            tqdm.write(f"{part.stem}: {failure}; trying again in {seconds:g} s", file=sys.stderr)
            time.sleep(seconds)


def _attempt(file: RemoteFile, part: Path) -> None:
    known = _known(file, part)
    validator, start = known.get("validator", ""), _size(part) if known else 0
    if start and start == known.get("num_bytes"):
        return
    with _open(file.url, part, start, validator) as response:
        rest = response.length  # None: unknown
        if response.status != 206:  # whole file: no range was requested, the file changed, or ranges are unsupported
            start, validator = 0, _validator(response)
            part.unlink(missing_ok=True)  # the new facts below do not describe the old bytes
            write_json(_facts_path(part), {"url": file.url, "validator": validator, "num_bytes": rest})
        total = None if rest is None else start + rest
        check_room(part.parent, rest or 0)
        bar = tqdm(
            None, part.stem, total, initial=start, unit="B", unit_scale=True, mininterval=0.5, dynamic_ncols=True
        )
        with part.open("ab" if start else "wb") as opened, bar:
            while chunk := _read(response):
                opened.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise _TemporaryError(f"the connection broke after {_size(part):,} of {total:,} bytes")


def _open(url: str, part: Path, start: int, validator: str) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"aia_jax/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                part.unlink(missing_ok=True)
                raise _TemporaryError("the file on the server has changed meanwhile; starting again") from None
            answer = f"the server answers {error.code} {error.reason}"
            if error.code in _TEMPORARY:
                raise _TemporaryError(answer) from None
            raise InputError(f"{url} cannot be downloaded: {answer}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _TemporaryError(f"no connection: {error or type(error).__name__}") from None


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _TemporaryError(f"the connection broke: {error or type(error).__name__}") from None


def _validator(response: http.client.HTTPResponse) -> str:
    """Returns the validator in the headers of `response`; "" if there is none."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _facts_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _known(file: RemoteFile, part: Path) -> dict[str, Any]:
    """Returns the content of <file>.part.json; {} if the partial download `part` cannot be continued."""
    try:
        facts = json.loads(_facts_path(part).read_bytes())
        return facts if part.exists() and facts["url"] == file.url and facts["validator"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
