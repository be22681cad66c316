import contextlib
import json
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.metric_writer import read_metrics
from aia_jax.utils.errors import InputError, Interrupted, NonFiniteLossError
from tests.helpers.toy_task import (
    FEATURES,
    ROWS,
    StopAt,
    ToyTask,
    assert_same_checkpoint,
    last_checkpoint,
    losses,
    run,
    toy_config,
)


def ema_epochs(workdir) -> list[int]:
    return [record["epoch"] for record in read_metrics(workdir) if record["kind"] == "test_ema"]


def test_a_run_learns_and_writes_its_files(finished):
    workdir, trainer = finished
    last, _, info = last_checkpoint(trainer, workdir)
    assert (last, info["epoch"]) == (4 * ROWS // 16, 4)
    assert set(info["evaluations"]) == {"raw", "ema"}
    assert info["metric"] == info["evaluations"][info["weights"]]["accuracy"]
    steps, by_step = zip(*losses(workdir).items(), strict=True)
    assert steps == tuple(range(1, last + 1))
    assert np.mean(by_step[-3:]) < np.mean(by_step[:3])
    assert ema_epochs(workdir) == [1, 2, 3, 4]
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 16
    assert "jax" in json.loads((workdir / "environment.json").read_text())["packages"]
    assert list((workdir / "tensorboard").iterdir())


def test_the_steps_compile_once_and_a_finished_run_does_not_change(finished, capsys):
    workdir, trainer = finished
    (predict_step,) = trainer.predictor._steps.values()
    assert trainer.train_step._cache_size() == predict_step._cache_size() == 1
    before = losses(workdir)
    run(toy_config(log_every=1), workdir)
    assert "nothing to train" in capsys.readouterr().out
    assert losses(workdir) == before


@pytest.mark.parametrize(("signum", "stop_step"), [(signal.SIGTERM, 5), (signal.SIGINT, 6)])
def test_an_interrupted_run_continues_to_the_same_bits(finished, tmp_path, capsys, signum, stop_step):
    workdir, trainer = finished
    config = toy_config(log_every=1)
    with pytest.raises(Interrupted, match="continues there") as caught:
        run(config, tmp_path, StopAt(config, stop_step, signum))
    assert caught.value.signum == signum
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps()[-1] == stop_step
    (tmp_path / "thresholds.json").write_text('{"sea": 0.1}')
    run(config, tmp_path)
    assert not (tmp_path / "thresholds.json").exists()  # it was for the weights of another step
    assert (tmp_path / "thresholds.old.json").read_text() == '{"sea": 0.1}'
    assert "renamed to thresholds.old.json" in capsys.readouterr().out
    assert losses(tmp_path) == losses(workdir)
    assert_same_checkpoint(trainer, workdir, tmp_path)


@pytest.mark.parametrize("num_devices", [1, 4, 8])
def test_any_number_of_devices_gives_the_same_losses(finished, tmp_path, num_devices):
    """The run is interrupted and continues with fewer devices."""
    config = toy_config(log_every=1)
    if num_devices > 1:
        with pytest.raises(Interrupted):
            run(config, tmp_path, StopAt(config, 5, signal.SIGTERM), num_devices=num_devices)
    run(config, tmp_path, num_devices=max(1, num_devices // 2))
    assert losses(tmp_path) == pytest.approx(losses(finished[0]), rel=1e-5)


class KernelOnly(nnx.Module):
    """A model without biases and statistics."""

    def __init__(self, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (FEATURES, 1)))

    def __call__(self, rows: jax.Array, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        return (rows @ self.kernel[...])[:, 0]


def test_a_model_without_biases_and_statistics_trains_and_continues(tmp_path):
    config = toy_config(epochs=2)
    for task in (StopAt(config, 4, signal.SIGTERM), ToyTask(config)):
        task.build_model = KernelOnly
        with contextlib.suppress(Interrupted):
            run(config, tmp_path, task)
    assert ema_epochs(tmp_path) == [1, 2]


def test_a_run_learns_in_microbatches(finished, tmp_path):
    run(toy_config(log_every=1, accumulate_steps=4), tmp_path)
    in_microbatches, at_once = list(losses(tmp_path).values()), list(losses(finished[0]).values())
    assert np.mean(in_microbatches[-3:]) < np.mean(in_microbatches[:3])
    assert in_microbatches[0] != at_once[0]  # batch norm normalised four rows at a time


def test_with_the_last_epoch_no_metric_chooses_epoch_or_weights(tmp_path):
    run(toy_config(**{"eval.epoch": "last", "epochs": 2}), tmp_path)
    with Checkpointer(tmp_path) as checkpointer:
        infos = {checkpointer.info(step)["epoch"]: checkpointer.info(step) for step in checkpointer.steps()}
        assert checkpointer.best()[1] == infos[2]
    assert [(infos[epoch]["metric"], infos[epoch]["weights"]) for epoch in (1, 2)] == [(1, "ema"), (2, "ema")]


def test_a_workdir_of_another_config_is_refused(finished):
    with pytest.raises(InputError, match=r"config.optimizer.max_learning_rate: 0.01 there, 0.5 given"):
        run(toy_config(**{"optimizer.max_learning_rate": 0.5}), finished[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"row_names": lambda index: [f"row {number + 1}" for number in index]},
            "was started with other training data",
        ),
        ({"describe": lambda: {"features": 6, "labels": ["b", "a"]}}, "on other labels, or on another order of them"),
    ],
)
def test_a_run_continues_only_on_the_same_data(tmp_path, changed, message):
    config = toy_config()
    task, other = StopAt(config, 5, signal.SIGTERM), ToyTask(config)
    task.describe = lambda: {"features": 6, "labels": ["a", "b"]}
    vars(other).update({"describe": task.describe} | changed)
    with pytest.raises(Interrupted):
        run(config, tmp_path, task)
    with pytest.raises(InputError, match=message):
        run(config, tmp_path, other)


def test_a_run_that_saved_nothing_may_start_again_with_another_config(tmp_path):
    config = toy_config()
    with pytest.raises(NonFiniteLossError, match="no checkpoint had been written yet"):
        run(config, tmp_path, ToyTask(config, poison=[2]))
    config = toy_config(**{"optimizer.max_learning_rate": 1e-3})
    assert last_checkpoint(run(config, tmp_path), tmp_path)[0] == 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 15}, r"config.batch_size=15 does not divide over 2 devices; use a multiple of 2"),
        ({"accumulate_steps": 0}, r"config.accumulate_steps=0 must be at least 1"),
        ({"on_nonfinite": "ignore"}, "config.on_nonfinite='ignore' is unknown; known: stop, skip"),
        ({"mesh.fsdp": 3}, r"config.mesh.fsdp=3 does not divide the 2 devices; possible: 1, 2"),
        ({"eval.batch_size": 7}, r"config.eval.batch_size=7 does not divide"),
        ({"eval.metric": "f2"}, r"config.eval.metric='f2' is not a metric of this task; known: accuracy"),
    ],
)
def test_bad_fields_are_refused(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        run(toy_config(**overrides), tmp_path)
