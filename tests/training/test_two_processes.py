"""Two processes of four devices each train as one process of eight devices, and as one device."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.state import TrainState
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import Interrupted
from tests.helpers.hosts_worker import RUNS, wide_config
from tests.helpers.toy_task import StopAt, last_checkpoint, losses, run
from tests.helpers.xla_flags import xla_flags

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 150


def last_logits(workdir: Path, trainer: Trainer) -> np.ndarray:
    """Predicts with the EMA weights of the newest checkpoint, on the trainer's devices."""
    _, items, _ = last_checkpoint(trainer, workdir)
    weights = TrainState.from_checkpoint(items).weights("ema")
    assert jax.tree.leaves(weights)[0].sharding.num_devices == 1
    return trainer.task.predict_split(trainer.predictor, [weights], "test")[0]["logits"]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory) -> tuple[Path, Trainer]:
    workdir = tmp_path_factory.mktemp("one")
    return workdir, run(wide_config(), workdir, num_devices=1)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """Returns the folder with the runs of two processes."""
    folder, config = tmp_path_factory.mktemp("two"), wide_config()
    with pytest.raises(Interrupted):
        run(config, folder / "from_one", StopAt(config, 4, signal.SIGTERM), num_devices=1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "hosts_worker.py"), str(folder), str(port)]
    options = {"XLA_FLAGS": xla_flags(4), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen([*command, str(number)], env=os.environ | options, **pipes) for number in range(2)]
    stop = threading.Timer(LIMIT_S, lambda: [process.kill() for process in both])
    stop.start()
    printed = [process.communicate()[0] for process in both]
    stop.cancel()
    assert [process.returncode for process in both] == [0, 0], "\n".join(printed)
    return folder


def read_facts(folder: Path) -> list[dict]:
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(2)]


@pytest.mark.parametrize("fsdp", [1, 4])
def test_one_process_of_eight_devices_has_the_losses_of_one_device(one_device, tmp_path, fsdp):
    run(wide_config(**{"mesh.fsdp": fsdp}), tmp_path, num_devices=8)
    assert losses(tmp_path) == pytest.approx(losses(one_device[0]), rel=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_device_which_restores_their_checkpoint(one_device, two_processes, name):
    workdir, trainer = one_device
    assert [(facts["devices"], facts["local"]) for facts in read_facts(two_processes)] == [(8, 4)] * 2
    assert losses(two_processes / name) == pytest.approx(losses(workdir), rel=1e-5)
    assert json.loads((two_processes / name / "environment.json").read_text())["processes"] == 2
    expected, actual = last_logits(workdir, trainer), last_logits(two_processes / name, trainer)
    np.testing.assert_allclose(actual, expected, atol=1e-4)  # rounding moves a bias before batch norm


def test_two_processes_train_in_object_storage_as_one_device_and_continue_there(one_device, two_processes):
    pytest.importorskip("fsspec")
    workdir, trainer = one_device
    bucket = two_processes / "cloud" / "bucket" / "run"
    assert losses(bucket) == pytest.approx(losses(workdir), rel=1e-5)
    np.testing.assert_allclose(last_logits(bucket, trainer), last_logits(workdir, trainer), atol=1e-4)
    copies = {
        path.name.rpartition("-")[2] for path in (two_processes / "cache" / "workdirs").iterdir() if path.is_dir()
    }
    assert "1" in copies
    assert len(copies) == 2
    first, second = (facts["in_bucket"] for facts in read_facts(two_processes))
    assert first == second
    assert len(first) > 5


@pytest.mark.parametrize(("name", "stop"), [("in_epoch", [16, signal.SIGTERM]), ("at_end", [3, signal.SIGINT])])
def test_a_signal_to_one_process_stops_both_at_the_same_step(two_processes, name, stop):
    assert [facts[name] for facts in read_facts(two_processes)] == [stop, stop]
    with Checkpointer(two_processes / name) as checkpointer:
        assert checkpointer.steps()[-1] == stop[0]
