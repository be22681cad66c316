"""Runs one of two processes: `python hosts_worker.py FOLDER PORT PROCESS_ID` trains in folders below FOLDER.

Writes devices, steps and signals to `<FOLDER>/<PROCESS_ID>.json`.
"""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import jax
import pytest

from aia_jax.cli.devices import join_hosts
from aia_jax.training.remote_workdir import RemoteWorkdir
from aia_jax.training.runs import run_arrays
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError, Interrupted
from tests.helpers.toy_task import StopAt, ToyTask, toy_config

RUNS = {"plain": 1, "fsdp8": 8, "from_one": 2}  # name: fsdp; the last one continues a run of one device


def wide_config(**overrides):
    """Returns a config of two epochs of three steps, with a weight large enough to be sharded."""
    return toy_config(epochs=2, log_every=1, width=4096, **{"optimizer.max_learning_rate": 1e-3, **overrides})


class LongEpochs(StopAt):
    """A toy task with 30 steps per epoch."""

    def epoch_end(self, epoch: int) -> int:
        return 30 * epoch


def stopped_at(task: ToyTask, workdir: Path) -> list[int]:
    """Trains; returns the last step and the signal if a signal stopped the run, or []."""
    trainer = Trainer(task.config, task, workdir)
    try:
        trainer.fit()
    except Interrupted as interruption:
        return [int(str(interruption).split()[3]), interruption.signum]
    return []


def in_bucket(folder: Path) -> list[float]:
    """Trains in object storage, is stopped and continues. Returns the sum of each array that this process reads."""
    from tests.helpers.buckets import FakeStorage, use_storage

    os.environ["AIA_JAX_CACHE"] = str(folder / "cache")
    use_storage(FakeStorage(folder / "cloud"))
    config = wide_config()
    remote = RemoteWorkdir("gs://bucket/run")
    with pytest.raises(InputError, match=r"config\.mesh\.fsdp=4: in object storage, a run of several processes needs"):
        Trainer(wide_config(**{"mesh.fsdp": 4}), ToyTask(config), remote.path, shared_workdir=False)
    with pytest.raises(Interrupted, match="stopped at step 3 of 6"), remote.opened():
        Trainer(config, StopAt(config, 2, signal.SIGTERM), remote.path, shared_workdir=False).fit()
    with remote.opened():
        Trainer(config, ToyTask(config), remote.path, shared_workdir=False).fit()
        remote.share()
        arrays, _ = run_arrays(remote.path)
    return [float(array.sum()) for _, array in sorted(arrays.items())]


def main(folder: Path, port: str, process: int) -> None:
    join_hosts(f"127.0.0.1:{port}", 2, process, timeout_s=60)
    facts = {"devices": jax.device_count(), "local": jax.local_device_count()}
    for name, fsdp in RUNS.items():
        config = wide_config(**{"mesh.fsdp": fsdp})
        Trainer(config, ToyTask(config), folder / name).fit()
    # Only process 1 gets a signal.
    config, when = wide_config(), 2 if process else 10**6
    facts["in_epoch"] = stopped_at(LongEpochs(config, when, signal.SIGTERM), folder / "in_epoch")
    facts["at_end"] = stopped_at(StopAt(config, when, signal.SIGINT), folder / "at_end")
    if importlib.util.find_spec("fsspec"):
        facts["in_bucket"] = in_bucket(folder)
    (folder / f"{process}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
