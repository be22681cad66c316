"""Files over HTTP: whole or not at all, continued where they were interrupted.

    <file>.part         what has come so far
    <file>.part.json    {"url", "validator", "num_bytes"}: of which file, so that the rest is of the same
    <file>.json         {"url", "validator", "num_bytes", "sha256"}: what came, of a file without a published checksum

A validator is what the header If-Range takes: a strong ETag, or else the date of the last change.
"""

import hashlib
import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from aia_jax.data.cache import check_room, os_errors_as_input_errors
from aia_jax.data.public.public_datasets import RemoteFile
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from aia_jax.version import __version__

ATTEMPTS = 5  # that bring nothing new, one after the other
PAUSE = 1.0  # seconds before the second attempt, twice as many before each further one
TIMEOUT = 60.0  # seconds without a byte

_CHUNK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class _Passing(Exception):
    """A failure that another attempt may not meet."""


def download(file: RemoteFile, folder: Path) -> Path:
    """Brings `file` to its place in `folder`, whole, and checks or records its checksum; what has come stays.

    Returns:
        Its path.

    Raises:
        InputError: the server does not give the file, or gives another; the disk is full or cannot be written.
    """
    path = folder / file.path
    part = path.with_name(f"{path.name}.part")
    with os_errors_as_input_errors(path.parent, file.num_bytes or None, "--root names another place"):
        path.parent.mkdir(parents=True, exist_ok=True)
        validator = _bring(file, part)
        if file.git_blob and git_blob_id(part) != file.git_blob:
            part.unlink()
            raise InputError(f"{file.url} is not the file that was published: its id in git is not {file.git_blob}")
        if not file.git_blob:
            facts = {"url": file.url, "validator": validator, "num_bytes": part.stat().st_size, "sha256": sha256(part)}
            write_json(_facts(path), facts)
        part.replace(path)
        _facts(part).unlink(missing_ok=True)
    return path


def check_unchanged(path: Path) -> None:
    """Compares a file with what was recorded when it was downloaded; one that a user brought has no record.

    Raises:
        InputError: it is another.
    """
    recorded = _read_facts(path)
    if not recorded:
        return
    if path.stat().st_size != recorded.get("num_bytes") or sha256(path) != recorded.get("sha256"):
        raise InputError(
            f"{path} has changed since it was downloaded: its size or SHA-256 is not that in {_facts(path).name}; "
            "remove both, and the same command downloads it again"
        )


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file, _bar(f"{path.name}: checksum", 0, path.stat().st_size) as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def git_blob_id(path: Path) -> str:
    """The id of a file in a git repository: SHA-1 of a header with its size, and its bytes."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _bring(file: RemoteFile, part: Path) -> str:
    """Fills `part`, however many attempts it takes as long as they get on; the validator of what came."""
    furthest, failures = _size(part), 0
    while True:
        try:
            return _attempt(file, part)
        except _Passing as failure:
            failures = 1 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures == ATTEMPTS:
                kept = f"{_size(part):,} bytes are kept, and " if _known(file, part) else ""
                message = f"{file.url} cannot be downloaded: {failure}; {kept}the same command tries again"
                raise InputError(message) from None
            seconds = PAUSE * 2 ** (failures - 1)
            tqdm.write(f"{part.stem}: {failure}; trying again in {seconds:g} s", file=sys.stderr)
            time.sleep(seconds)


def _attempt(file: RemoteFile, part: Path) -> str:
    known = _known(file, part)
    validator, start = known.get("validator", ""), _size(part) if known else 0
    if start and start == known.get("num_bytes"):
        return validator
    with _open(file.url, part, start, validator) as response:
        rest = response.length  # None: the server does not say
        if response.status != 206:  # all of it: asked for so, ranges are ignored, or it has changed
            start, validator = 0, _validator(response)
            _check_kind(file, response)
            part.unlink(missing_ok=True)  # before the facts of another are written
            write_json(_facts(part), {"url": file.url, "validator": validator, "num_bytes": rest})
        elif _validator(response) not in ("", validator) or _first_byte(response) != start:
            _start_again(part)
        total = None if rest is None else start + rest
        check_room(part.parent, rest or 0)
        _write(response, part, start, total)
    if total is not None and _size(part) != total:
        raise _Passing(f"the connection broke after {_size(part):,} of {total:,} bytes")
    return validator


def _open(url: str, part: Path, start: int, validator: str) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"aia_jax/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                _start_again(part)
            told = f"the server answers {error.code} {error.reason}"
            if error.code in _PASSING:
                raise _Passing(told) from None
            raise InputError(f"{url} cannot be downloaded: {told}") from None
    except urllib.error.URLError as error:
        raise _Passing(f"no connection: {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(f"no answer: {error or type(error).__name__}") from None


def _start_again(part: Path) -> NoReturn:
    part.unlink(missing_ok=True)
    raise _Passing("the file on the server has changed meanwhile; starting again")


def _write(response: http.client.HTTPResponse, part: Path, start: int, total: int | None) -> None:
    with part.open("ab" if start else "wb") as file, _bar(part.stem, start, total) as bar:
        while chunk := _read(response):
            file.write(chunk)
            bar.update(len(chunk))


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(f"the connection broke: {error or type(error).__name__}") from None


def _check_kind(file: RemoteFile, response: http.client.HTTPResponse) -> None:
    if response.headers.get_content_type() == "text/html":
        raise InputError(f"{file.url} gives a web page and not the file; open it in a browser to see what it asks for")
    if response.length and file.num_bytes and response.length != file.num_bytes:
        told = f"{file.url} has {response.length:,} bytes; it had {file.num_bytes:,} when this command was written"
        tqdm.write(f"{told}. Going on: every photo in it is checked", file=sys.stderr)


def _validator(response: http.client.HTTPResponse) -> str:
    """What tells this version of the file from others; "": nothing does."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _first_byte(response: http.client.HTTPResponse) -> int:
    """The first byte of a partial answer; -1: it does not say."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return int(first) if first.isdigit() else -1


def _facts(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_facts(path).read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _known(file: RemoteFile, part: Path) -> dict[str, Any]:
    """What is known of the file whose beginning `part` is; {}: not enough to tell whether the rest is of it."""
    known = _read_facts(part)
    return known if part.exists() and known.get("url") == file.url and known.get("validator") else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _bar(name: str, start: int, total: int | None) -> tqdm:
    return tqdm(desc=name, initial=start, total=total, unit="B", unit_scale=True, mininterval=0.5, dynamic_ncols=True)
