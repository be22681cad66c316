"""Downloads from unreliable servers: broken connections, changed files, wrong responses."""

import errno
import hashlib
import os
import random
import shutil

import pytest

from aia_jax.data.public import download as downloads
from aia_jax.data.public.download import download
from aia_jax.data.public.public_datasets import RemoteFile
from aia_jax.utils.errors import InputError
from tests.helpers.file_server import Served, serving

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as running:
        yield running


def remote(server, **fields) -> RemoteFile:
    return RemoteFile("downloads/images.zip", server.url("images.zip"), **fields)


def names(folder) -> list[str]:
    return sorted(path.name for path in (folder / "downloads").iterdir())


def error_of(file, folder) -> str:
    with pytest.raises(InputError) as caught:
        download(file, folder)
    return str(caught.value)


def test_a_file_is_downloaded(server, tmp_path):
    server.files["images.zip"] = Served(CONTENT)
    path = download(remote(server), tmp_path)
    assert path == tmp_path / "downloads" / "images.zip"
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["images.zip"]


DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


@pytest.mark.parametrize(
    ("answer", "ranges"),
    [
        ({"breaks": [100_000, 50_000]}, ["", "bytes=100000-", "bytes=150000-"]),
        ({"breaks": [100_000], "etag": "", "last_modified": DATE}, ["", "bytes=100000-"]),
        ({"breaks": [10_000] * 20}, ["", *(f"bytes={number}0000-" for number in range(1, 21))]),  # there is progress
        ({"has_length": False}, [""]),  # the end of the connection is the end of the file
        ({"breaks": [100_000], "has_ranges": False}, ["", "bytes=100000-"]),  # the server sends the whole file
        ({"breaks": [100_000], "etag": ""}, ["", ""]),
        ({"breaks": [100_000], "etag": 'W/"1"'}, ["", ""]),
    ],
)
def test_a_broken_connection_is_continued_or_the_download_starts_again(server, tmp_path, answer, ranges):
    server.files["images.zip"] = Served(CONTENT, **answer)
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == ranges


@pytest.mark.parametrize("error", [KeyboardInterrupt("^C"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_a_download_that_was_interrupted_or_filled_the_disk_is_continued(server, tmp_path, monkeypatch, error):
    server.files["images.zip"] = Served(CONTENT)
    read, chunks = downloads._read, []

    def stopping(response):
        if chunks:
            raise error
        chunks.append(read(response))
        return chunks[0]

    with monkeypatch.context() as context:
        context.setattr(downloads, "_read", stopping)
        with pytest.raises((KeyboardInterrupt, InputError), match=r"\^C|is full"):
            download(remote(server), tmp_path)
    assert names(tmp_path) == ["images.zip.part", "images.zip.part.json"]
    assert (tmp_path / "downloads" / "images.zip.part").read_bytes() == chunks[0]
    size = len(chunks[0])
    assert 0 < size < len(CONTENT)
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["", f"bytes={size}-"]
    assert names(tmp_path) == ["images.zip"]


def test_a_complete_part_is_not_downloaded_again(server, tmp_path, monkeypatch):
    server.files["images.zip"] = Served(CONTENT)
    file = remote(server, git_blob=hashlib.sha1(b"blob 300000\0" + CONTENT).hexdigest())
    with monkeypatch.context() as context:
        context.setattr(downloads, "git_blob_id", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            download(file, tmp_path)
    assert download(file, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [""]


@pytest.mark.parametrize("size", [300_000, 100_000, 40_000])
def test_a_file_that_changes_between_attempts_is_never_mixed(server, tmp_path, monkeypatch, size):
    server.files["images.zip"] = Served(CONTENT, breaks=[100_000])
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    assert "100,000 bytes are kept" in error_of(remote(server), tmp_path)
    monkeypatch.setattr(downloads, "ATTEMPTS", 5)
    other = random.Random(1).randbytes(size)
    server.files["images.zip"] = Served(other, etag='"2"')
    assert download(remote(server), tmp_path).read_bytes() == other


def test_the_part_of_another_url_is_not_used(server, tmp_path, monkeypatch):
    server.files["other.zip"] = Served(CONTENT[::-1], breaks=[100_000])
    server.files["images.zip"] = Served(CONTENT)
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    error_of(RemoteFile("downloads/images.zip", server.url("other.zip")), tmp_path)
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_reported(server, tmp_path, capsys):
    server.files["images.zip"] = Served(CONTENT, statuses=[500, 503, 429])
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert "the server answers 503 Service Unavailable; trying again in 0 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "message", "attempts"),
    [
        *(({"statuses": [status]}, f"the server answers {status}", 1) for status in (401, 403, 404, 410)),
        ({"statuses": [500] * 99}, "the server answers 500", downloads.ATTEMPTS),
        ({"has_ranges": False, "breaks": [100_000] * 99}, "the connection broke after 100,000 of 300,000 bytes", 5),
    ],
)
def test_it_gives_up_when_refused_or_after_attempts_without_progress(server, tmp_path, answer, message, attempts):
    server.files["images.zip"] = Served(CONTENT, **answer)
    assert f"/images.zip cannot be downloaded: {message}" in error_of(remote(server), tmp_path)
    assert len(server.ranges) == attempts


def test_an_unreachable_server(server, tmp_path):
    file = remote(server)
    server.server_close()
    message = error_of(file, tmp_path)
    assert "no connection: " in message
    assert "the same command tries again" in message


def test_the_git_id_is_the_checksum(server, tmp_path):
    content = b"2328403.jpg\n"
    real = hashlib.sha1(b"blob 12\0" + content).hexdigest()
    server.files["images.zip"] = Served(content, content_type="text/plain")
    assert "its id in git is not 37e52b1d" in error_of(remote(server, git_blob="37e52b1d"), tmp_path)
    assert names(tmp_path) == ["images.zip.part.json"]
    assert download(remote(server, git_blob=real), tmp_path).read_bytes() == content
    assert names(tmp_path) == ["images.zip"]  # a published checksum needs no record


def test_a_disk_without_room_is_reported_before_the_download(server, tmp_path, monkeypatch):
    server.files["images.zip"] = Served(CONTENT)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(CONTENT) - 1))
    expected = f"the disk of {tmp_path}/downloads is full: about 0.3 MB are needed there; --root names another place"
    assert error_of(remote(server, num_bytes=len(CONTENT)), tmp_path) == expected
