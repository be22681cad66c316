import errno
import fcntl
import multiprocessing
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from aia_jax.data import cache
from aia_jax.utils.errors import InputError


def _write(directory: Path) -> None:
    (directory / "data").mkdir()
    (directory / "data" / "rows").write_text("12345")


def _prepare(parent: Path, fingerprint: str = "aaa", write=_write, num_bytes: int = 10) -> Path:
    return cache.cached_directory(parent, "train-8px", fingerprint, num_bytes, write)


def _directories(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.is_dir())


@pytest.mark.parametrize("damage", ["truncate", "remove", "no manifest", "bad manifest"])
def test_a_directory_is_written_once_and_again_if_damaged(tmp_path, damage):
    path = _prepare(tmp_path)
    rows = path / "data" / "rows"
    assert rows.read_text() == "12345"
    assert _prepare(tmp_path, write=pytest.fail) == path
    if damage == "truncate":
        rows.write_text("123")
    elif damage == "remove":
        rows.unlink()
    else:
        manifest = path / "whole.json"
        manifest.unlink() if damage == "no manifest" else manifest.write_text("{")
    _prepare(tmp_path)
    assert rows.read_text() == "12345"


def test_other_fingerprints_of_the_kind_are_removed(tmp_path):
    cache.cached_directory(tmp_path, "train-80px", "aaa", 10, _write)
    cache.cached_directory(tmp_path, "test-8px", "aaa", 10, _write)
    _prepare(tmp_path, "aaa")
    _prepare(tmp_path, "bbb")
    assert _directories(tmp_path) == ["test-8px-aaa", "train-80px-aaa", "train-8px-bbb"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError, ValueError])
def test_an_interruption_leaves_nothing(tmp_path, error):
    def write(directory: Path) -> None:
        _write(directory)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        _prepare(tmp_path, write=write)
    assert _directories(tmp_path) == []


def _die_while_writing(parent: Path) -> None:
    def write(directory: Path) -> None:
        _write(directory)
        os._exit(1)

    _prepare(parent, write=write)


def test_the_files_of_a_killed_writer_are_removed(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_die_while_writing, args=(tmp_path,))
    process.start()
    process.join()
    (left,) = _directories(tmp_path)
    assert left.startswith(".train-8px-aaa~")
    _prepare(tmp_path)
    assert _directories(tmp_path) == ["train-8px-aaa"]


def test_only_abandoned_directories_are_removed(tmp_path):
    places = (f"{socket.gethostname()}~{os.getppid()}~1", "another-host~1~1", "another-host~1~2")
    parent, fresh, old = (tmp_path / f".train-8px-ccc~{place}" for place in places)
    for directory in (parent, fresh, old):
        directory.mkdir()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    _prepare(tmp_path)
    assert _directories(tmp_path) == sorted([parent.name, fresh.name, "train-8px-aaa"])


def _prepare_beside_another(parent: Path, writers: Path, locks: bool) -> None:
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def write(directory: Path) -> None:
        (writers / str(os.getpid())).touch()
        start = time.monotonic()
        while time.monotonic() < start + 1 if locks else len(list(writers.iterdir())) < 2:
            time.sleep(0.01)
        _write(directory)

    if not locks:
        fcntl.flock = no_locks
    assert (_prepare(parent, write=write) / "data" / "rows").read_text() == "12345"


@pytest.mark.parametrize(("locks", "num_writers"), [(True, 1), (False, 2)])
def test_two_processes_write_once_or_without_locks_twice(tmp_path, locks, num_writers):
    (writers := tmp_path / "writers").mkdir()
    context = multiprocessing.get_context("spawn")
    arguments = tmp_path / "cache", writers, locks
    processes = [context.Process(target=_prepare_beside_another, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(writers.iterdir())) == num_writers
    assert _directories(tmp_path / "cache") == ["train-8px-aaa"]


def test_a_disk_that_is_full_or_not_writable_is_reported_with_its_place(tmp_path):
    def write(directory: Path) -> None:
        _write(directory)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"full: about 5,000\.0 MB are needed there; config") as caught:
        _prepare(tmp_path, write=write, num_bytes=5_000_000_000)
    assert str(tmp_path) in str(caught.value)
    assert _directories(tmp_path) == []
    with pytest.raises(InputError, match="full"):  # before writing
        _prepare(tmp_path, write=pytest.fail, num_bytes=2 * shutil.disk_usage(tmp_path).total)
    (tmp_path / "cache").touch()  # a file
    with pytest.raises(InputError, match=r"cache cannot be written.*\$AIA_JAX_CACHE"):
        _prepare(tmp_path / "cache")


def test_cache_root(tmp_path, monkeypatch):
    monkeypatch.setenv("AIA_JAX_CACHE", str(tmp_path / "env"))
    assert cache.cache_root("") == tmp_path / "env"
    assert cache.cache_root(str(tmp_path / "config")) == tmp_path / "config"
    monkeypatch.delenv("AIA_JAX_CACHE")
    assert cache.cache_root("") == Path.home() / ".cache" / "aia_jax"
