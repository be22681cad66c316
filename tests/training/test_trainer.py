import contextlib
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.metric_writer import MetricWriter
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError, Interrupted, NonFiniteLossError
from tests.helpers.toy_task import FEATURES, ROWS, StopAt, ToyTask, final_items, losses, records, run, toy_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    trainer = run(toy_config(log_every=1), workdir)
    return workdir, trainer


def test_it_learns_and_records(whole):
    workdir, trainer = whole
    last, _, info = final_items(trainer, workdir)
    assert last == 4 * ROWS // 16
    assert info["epoch"] == 4
    assert set(info["evaluations"]) == {"raw", "ema"}
    assert info["metric"] == info["evaluations"][info["weights"]]["accuracy"]
    by_step = losses(workdir)
    assert list(by_step) == list(range(1, last + 1))
    assert np.mean(list(by_step.values())[-3:]) < np.mean(list(by_step.values())[:3])
    assert [line["epoch"] for line in records(workdir) if line["kind"] == "test_ema"] == [1, 2, 3, 4]
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 16
    assert "jax" in json.loads((workdir / "environment.json").read_text())["packages"]
    assert list((workdir / "tensorboard").iterdir())


def test_the_steps_compile_once(whole):
    _, trainer = whole
    assert trainer.train_step._cache_size() == 1
    (predict_step,) = trainer.predictor._steps.values()
    assert predict_step._cache_size() == 1


def test_a_finished_run_is_left_alone(whole, capsys):
    workdir, _ = whole
    before = losses(workdir)
    run(toy_config(log_every=1), workdir)
    assert "nothing to train" in capsys.readouterr().out
    assert losses(workdir) == before


@pytest.mark.parametrize(("signum", "stop_step"), [(signal.SIGTERM, 5), (signal.SIGINT, 6)])
def test_an_interrupted_run_continues_to_the_same_bits(whole, tmp_path, signum, stop_step):
    workdir, trainer = whole
    config = toy_config(log_every=1)
    with pytest.raises(Interrupted, match="continues there") as caught:
        Trainer(config, StopAt(config, stop_step, signum), tmp_path, devices=jax.devices()[:2]).fit()
    assert caught.value.signum == signum
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps()[-1] == stop_step
    run(config, tmp_path)
    assert losses(tmp_path) == losses(workdir)
    expected, actual = final_items(trainer, workdir), final_items(trainer, tmp_path)
    assert expected[0] == actual[0]
    assert expected[2] == actual[2]
    jax.tree.map(np.testing.assert_array_equal, expected[1], actual[1])


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_any_number_of_devices_gives_the_same_losses(whole, tmp_path, devices):
    workdir, _ = whole
    run(toy_config(log_every=1), tmp_path, devices=jax.devices()[:devices])
    expected, actual = losses(workdir), losses(tmp_path)
    np.testing.assert_allclose([actual[step] for step in expected], list(expected.values()), rtol=1e-5)


def test_a_run_goes_on_with_fewer_devices(whole, tmp_path):
    config = toy_config(log_every=1)
    for devices, stop_step in ((8, 4), (4, 8)):
        task = StopAt(config, stop_step, signal.SIGTERM)
        with pytest.raises(Interrupted):
            Trainer(config, task, tmp_path, devices=jax.devices()[:devices]).fit()
    run(config, tmp_path, devices=jax.devices()[:1])
    expected, actual = losses(whole[0]), losses(tmp_path)
    assert list(actual) == list(expected)
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-5)


class Bare(nnx.Module):
    """A kernel alone: no vectors to train and no statistics."""

    def __init__(self, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (FEATURES, 1)))

    def __call__(self, rows: jax.Array, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        return (rows @ self.kernel[...])[:, 0]


def test_a_model_without_vectors_or_statistics_trains_and_continues(tmp_path):
    config = toy_config(epochs=2)
    for task in (StopAt(config, 4, signal.SIGTERM), ToyTask(config)):
        task.build_model = Bare
        with contextlib.suppress(Interrupted):
            Trainer(config, task, tmp_path, devices=jax.devices()[:2]).fit()
    assert [line["epoch"] for line in records(tmp_path) if line["kind"] == "test_ema"] == [1, 2]


def test_it_learns_in_microbatches(whole, tmp_path):
    run(toy_config(log_every=1, accumulate_steps=4), tmp_path)
    in_microbatches, at_once = list(losses(tmp_path).values()), list(losses(whole[0]).values())
    assert np.mean(in_microbatches[-3:]) < np.mean(in_microbatches[:3])
    assert in_microbatches[0] != at_once[0]  # batch norm saw four rows at a time


def test_the_best_checkpoint_outlives_the_newest(tmp_path):
    config = toy_config(**{"checkpoint.keep": 1})

    class Falling(ToyTask):
        def evaluate(self, split, outputs):
            self.calls = getattr(self, "calls", 0) + 1
            return {"accuracy": {3: 0.9, 4: 0.8}.get(self.calls, 0.1)}

    Trainer(config, Falling(config), tmp_path, devices=jax.devices()[:1]).fit()
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.steps() == [6, 12]
        assert checkpointer.info(6)["weights"] == "raw"


def test_a_workdir_of_another_config_is_refused(whole):
    workdir, _ = whole
    config = toy_config(log_every=1, **{"optimizer.max_learning_rate": 0.5, "data.root": "elsewhere"})
    with pytest.raises(InputError, match=r"config.optimizer.max_learning_rate: 0.01 there, 0.5 given") as caught:
        run(config, workdir)
    assert "data.root" not in str(caught.value)


def test_a_failed_first_attempt_does_not_bind_the_workdir(tmp_path):
    with pytest.raises(NonFiniteLossError, match="no checkpoint had been written yet"):
        run(toy_config(), tmp_path, poison_step=2)
    config = toy_config(**{"optimizer.max_learning_rate": 1e-3})
    last, _, _ = final_items(run(config, tmp_path), tmp_path)
    assert last == 12


def test_a_half_written_record_does_not_hinder_resuming(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "copy")
    records_file = tmp_path / "copy" / "metrics.jsonl"
    records_file.write_text(records_file.read_text() + '{"step": 12, "ki')
    with MetricWriter(tmp_path / "copy", resume_step=6):
        pass
    assert max(line["step"] for line in records(tmp_path / "copy")) == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 15}, r"config.batch_size=15 does not divide over 2 devices; use a multiple of 2"),
        ({"batch_size": 18, "accumulate_steps": 2}, r"does not divide over 2 devices x 2 microbatches"),
        ({"mesh.fsdp": 3}, r"config.mesh.fsdp=3 does not divide the 2 devices; possible: 1, 2"),
        ({"eval.batch_size": 7}, r"config.eval.batch_size=7 does not divide"),
        ({"eval.metric": "f2"}, r"config.eval.metric='f2' is not a metric of this task; known: accuracy"),
    ],
)
def test_bad_fields_are_refused(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        run(toy_config(**overrides), tmp_path)
