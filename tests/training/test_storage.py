"""What a failing disk does to a run; `docs/reliability.md` lists it."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.metric_writer import MetricWriter
from aia_jax.training.runs import best_step, run_arrays
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import exclusive_lock
from tests.helpers.toy_task import ToyTask, final_items, losses, run, toy_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(toy_config(log_every=1), workdir)


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """A file system of its own at `folder`."""
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


def truncate(folder: Path) -> None:
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(folder: Path) -> None:
    path = largest_file(folder / "progress")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def lose_a_file(folder: Path) -> None:
    largest_file(folder / "weights").unlink()


def spoil_the_facts(folder: Path) -> None:
    (folder / "info" / "metadata").write_text('{"epoch": 4')


def spoil_the_digests(folder: Path) -> None:
    (folder / "digests.json").write_text("[]")


def assert_same_run(expected, actual):
    assert expected[0] == actual[0]
    assert expected[2] == actual[2]
    jax.tree.map(np.testing.assert_array_equal, expected[1], actual[1])


@pytest.mark.parametrize("spoil", [truncate, flip_a_bit, lose_a_file, spoil_the_facts, spoil_the_digests])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(whole, copy, capsys, spoil):
    workdir, trainer = whole
    spoil(copy / "checkpoints" / "12")
    run(toy_config(log_every=1), copy)
    told = capsys.readouterr().out
    assert f"the checkpoint of step 12 is damaged ({'digests.json' if spoil is spoil_the_digests else ''}" in told
    assert f"continuing {copy} at step 9 of 12" in told
    assert (copy / "damaged" / "12").is_dir()
    assert losses(copy) == losses(workdir)
    assert_same_run(final_items(trainer, workdir), final_items(trainer, copy))


def test_a_damaged_best_checkpoint_is_set_aside_too(tmp_path):
    config = toy_config(**{"checkpoint.keep": 1})

    class Falling(ToyTask):
        calls = 0

        def evaluate(self, split, outputs):
            self.calls += 1
            return {"accuracy": 1 / self.calls}

    Trainer(config, Falling(config), tmp_path, devices=jax.devices()[:1]).fit()
    flip_a_bit(tmp_path / "checkpoints" / "3")
    with pytest.raises(InputError, match=r"3 is damaged: .*; train.py with the same config and workdir sets it aside"):
        run_arrays(tmp_path)
    run(config, tmp_path)
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["3"]
    assert run_arrays(tmp_path)[1]["epoch"] == 4


def test_facts_that_cannot_be_read_are_told(copy):
    spoil_the_facts(copy / "checkpoints" / "12")
    with Checkpointer(copy) as checkpointer, pytest.raises(InputError, match=r"12 is damaged: info: .*sets it aside"):
        best_step(checkpointer)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(copy):
    steps = sorted(path.name for path in (copy / "checkpoints").iterdir())
    for step in steps:
        flip_a_bit(copy / "checkpoints" / step)
    with pytest.raises(InputError, match=r"all checkpoints in .* are damaged; put back a copy of one") as caught:
        run(toy_config(log_every=1), copy)
    assert all(f"  {step}: progress/" in str(caught.value) for step in steps)
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == steps


def test_a_damaged_checkpoint_is_not_used(copy):
    with Checkpointer(copy) as checkpointer:
        checkpointer.check_undamaged(12)
    for step in (copy / "checkpoints").iterdir():
        truncate(step)
    with pytest.raises(InputError, match=r"is damaged: .* is changed; train.py with the same config"):
        run_arrays(copy)


def test_what_a_kill_left_half_written_goes(copy):
    left = copy / "checkpoints" / "12.orbax-checkpoint-tmp"
    left.mkdir()
    shutil.rmtree(copy / "checkpoints" / "12")
    run(toy_config(log_every=1), copy)
    assert not left.exists()


def test_the_best_checkpoint_survives_resuming(tmp_path):
    config = toy_config(**{"checkpoint.keep": 1})

    class Falling(ToyTask):
        calls, stop = 0, None

        def evaluate(self, split, outputs):
            if self.calls == self.stop:
                raise KeyboardInterrupt
            self.calls += 1
            return {"accuracy": 1 / self.calls}

    first = Falling(config)
    first.stop = 4
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, first, tmp_path, devices=jax.devices()[:1]).fit()
    second = Falling(config)
    second.calls = 4  # what follows is worse than what was
    Trainer(config, second, tmp_path, devices=jax.devices()[:1]).fit()
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.steps() == [3, 12]
        assert checkpointer.info(3)["metric"] == 1


def test_two_trainers_in_one_workdir(copy):
    with (
        exclusive_lock(copy / ".lock", ""),
        pytest.raises(InputError, match=r"another process trains in .*run; stop it, wait"),
    ):
        run(toy_config(log_every=1), copy)
    run(toy_config(log_every=1), copy)


@pytest.mark.filterwarnings("ignore:coroutine .*never awaited:RuntimeWarning")  # what Orbax no longer wrote
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_during_a_save(whole, tmp_path):
    workdir, trainer = whole
    config = toy_config(log_every=1, **{"checkpoint.keep": 4})
    with mounted(tmp_path / "disk", "size=480k"):
        with pytest.raises(InputError, match=r"No space left on device.*give the same command again"):
            run(config, tmp_path / "disk")
        assert list((tmp_path / "disk" / "checkpoints").iterdir())
        subprocess.run(["mount", "-o", "remount,size=8m", str(tmp_path / "disk")], check=True)
        run(config, tmp_path / "disk")
        assert_same_run(final_items(trainer, workdir), final_items(trainer, tmp_path / "disk"))


def test_records_on_a_full_disk_are_told_and_closed(tmp_path):
    def write_all(writer):
        for step in range(1000):
            writer.write(step, "train", {"loss": 0.5})

    disk = tmp_path / "disk"
    with mounted(disk, "size=64k"):
        with (
            pytest.raises(InputError, match=r"metrics\.jsonl cannot be written: No space left on device"),
            MetricWriter(disk) as writer,
        ):
            write_all(writer)
        opened = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        assert [path for path in opened if path.startswith(str(disk))] == []


def test_a_read_only_workdir(tmp_path):
    with (
        mounted(tmp_path / "disk", "size=1m,ro"),
        pytest.raises(InputError, match=r"disk/run cannot be written: Read-only file system; make it writable, or"),
    ):
        run(toy_config(), tmp_path / "disk" / "run")
