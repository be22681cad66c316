"""Effects of damaged files and failing disks on a run; `docs/reliability.md` lists them."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from aia_jax.training import checkpoint_recovery
from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.metric_writer import MetricWriter
from aia_jax.training.runs import run_arrays
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import exclusive_lock
from tests.helpers.toy_task import Scored, assert_same_checkpoint, losses, run, toy_config

CONFIG = toy_config(log_every=1)
FALLING = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished[0], tmp_path / "run")


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """Mounts a file system at `folder`."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(checkpoint: Path) -> None:
    path = largest_file(checkpoint)
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(checkpoint: Path) -> None:
    path = largest_file(checkpoint / "progress")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def delete_a_file(checkpoint: Path) -> None:
    largest_file(checkpoint / "weights").unlink()


def cut_the_info(checkpoint: Path) -> None:
    (checkpoint / "info" / "metadata").write_text('{"epoch": 4')


def cut_the_digests(checkpoint: Path) -> None:
    (checkpoint / "digests.json").write_text("[]")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, delete_a_file, cut_the_info, cut_the_digests])
def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(finished, copy, capsys, damage):
    damage(copy / "checkpoints" / "12")
    run(CONFIG, copy)
    output = capsys.readouterr().out
    assert f"the checkpoint of step 12 is damaged ({'digests.json' if damage is cut_the_digests else ''}" in output
    assert f"continuing {copy} at step 9 of 12" in output
    assert (copy / "damaged" / "12").is_dir()
    assert losses(copy) == losses(finished[0])
    assert_same_checkpoint(finished[1], finished[0], copy)


def test_a_checkpoint_that_may_not_be_read_is_not_damaged(copy, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint_recovery, "sha256_of_file", refuse)
    with pytest.raises(InputError, match=r"checkpoints/\d+/.* cannot be read: Permission denied; make it readable"):
        run(CONFIG, copy)
    assert not (copy / "damaged").exists()


def test_a_damaged_best_checkpoint_is_set_aside_too(tmp_path):
    config = toy_config(**{"checkpoint.keep": 1})
    run(config, tmp_path, Scored(config, FALLING), num_devices=1)
    flip_a_bit(tmp_path / "checkpoints" / "3")
    with pytest.raises(InputError, match=r"3 is damaged: .*; aia train with the same config and workdir sets it aside"):
        run_arrays(tmp_path)
    run(config, tmp_path)
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["3"]
    assert run_arrays(tmp_path)[1]["epoch"] == 4


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again(copy):
    steps = sorted(path.name for path in (copy / "checkpoints").iterdir())
    for checkpoint in (copy / "checkpoints").iterdir():
        flip_a_bit(checkpoint)
    with pytest.raises(InputError, match=r"all checkpoints in .* are damaged; put back a copy of one") as caught:
        run(CONFIG, copy)
    assert all(f"  {step}: progress/" in str(caught.value) for step in steps)
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == steps


def test_weights_and_info_of_a_damaged_checkpoint_are_refused(copy):
    with Checkpointer(copy) as checkpointer:
        checkpointer.check_undamaged(12)
    for checkpoint in (copy / "checkpoints").iterdir():
        truncate(checkpoint)
    with pytest.raises(InputError, match=r"is damaged: .* is changed; aia train with the same config"):
        run_arrays(copy)
    cut_the_info(copy / "checkpoints" / "12")
    with Checkpointer(copy) as checkpointer, pytest.raises(InputError, match=r"12 is damaged: info: .*sets it aside"):
        checkpointer.best()


def test_the_best_checkpoint_is_kept_besides_the_newest_also_when_a_run_continues(tmp_path):
    config = toy_config(**{"checkpoint.keep": 1})
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, Scored(config, [0.1, 0.1, 1, 0.9, 0.1, 0.1]), num_devices=1)
    for newest in (9, 12):
        with Checkpointer(tmp_path, keep=1) as checkpointer:
            assert checkpointer.steps() == [6, newest]
            assert (checkpointer.info(6)["metric"], checkpointer.info(6)["weights"]) == (1, "raw")
        run(config, tmp_path, Scored(config, [0.1, 0.1]), num_devices=1)


def test_a_second_trainer_is_refused_and_an_incomplete_checkpoint_removed(copy):
    incomplete = copy / "checkpoints" / "12.orbax-checkpoint-tmp"
    incomplete.mkdir()
    shutil.rmtree(copy / "checkpoints" / "12")
    with (
        exclusive_lock(copy / ".lock", "locked"),
        pytest.raises(InputError, match=r"another process trains in .*run; stop it, wait"),
    ):
        run(CONFIG, copy)
    assert incomplete.exists()
    run(CONFIG, copy)
    assert not incomplete.exists()


@pytest.mark.filterwarnings("ignore:coroutine .*never awaited:RuntimeWarning")  # of Orbax, after a failed save
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_continues_after_the_disk_was_full(finished, tmp_path):
    disk, config = tmp_path / "disk", toy_config(log_every=1, **{"checkpoint.keep": 4})
    with mounted(disk, "size=480k"):
        with pytest.raises(InputError, match=r"No space left on device.*give the same command again"):
            run(config, disk)
        assert list((disk / "checkpoints").iterdir())
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        run(config, disk)
        assert_same_checkpoint(finished[1], finished[0], disk)


def test_metrics_on_a_full_disk_are_reported_and_their_files_closed(tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, "size=64k"):
        with (
            pytest.raises(InputError, match=r"metrics\.jsonl is full: No space left on device"),
            MetricWriter(disk) as writer,
        ):
            [writer.write(step, "train", {"loss": 0.5}) for step in range(1000)]
        opened = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        assert [path for path in opened if path.startswith(str(disk))] == []


def test_a_read_only_workdir_is_refused(tmp_path):
    with (
        mounted(tmp_path / "disk", "size=1m,ro"),
        pytest.raises(InputError, match=r"--workdir .*run: .*disk cannot be written; make it writable, or"),
    ):
        run(toy_config(), tmp_path / "disk" / "run")
