import contextlib
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.metric_writer import read_records
from aia_jax.training.nonfinite import NonFiniteSteps
from aia_jax.utils.errors import Interrupted, NonFiniteLossError
from tests.helpers.toy_task import StopAt, ToyTask, assert_same_checkpoint, last_checkpoint, losses, run, toy_config


class BadGradients(ToyTask):
    """A finite loss, whose gradients are NaN at the steps `poison`."""

    def loss(self, model, batch, key):
        finite = jnp.isfinite(batch["rows"]).mean()  # 0 or 1
        loss, metrics = super().loss(model, {**batch, "rows": jnp.nan_to_num(batch["rows"])}, key)
        return loss + 1e-6 * jnp.sqrt(finite * loss), metrics


def test_a_non_finite_loss_stops_the_run_and_names_step_and_batch(tmp_path):
    config = toy_config()
    with pytest.raises(NonFiniteLossError, match=r"loss is nan at step 8; the checkpoint of step 6 remains, .* names"):
        run(config, tmp_path, ToyTask(config, poison=[8]))
    task = ToyTask(config)
    batch = task.row_names(next(task.train_batches(7))["index"])
    assert read_records(tmp_path / "nonfinite.jsonl") == [{"step": 8, "loss": "nan", "action": "stop", "batch": batch}]
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps() == [3, 6]
    assert last_checkpoint(run(config, tmp_path), tmp_path)[0] == 12  # the same command, after the data were corrected


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_non_finite_gradients_of_a_finite_loss_are_found(tmp_path, policy):
    config = toy_config(on_nonfinite=policy, max_skipped_steps=1)
    stops = pytest.raises(NonFiniteLossError, match=r"gradients are not finite at step 5 \(loss 0\.\d+\); the")
    with stops if policy == "stop" else contextlib.nullcontext():
        run(config, tmp_path, BadGradients(config, poison=[5]))
    (line,) = map(json.loads, (tmp_path / "nonfinite.jsonl").read_text().splitlines())
    assert (line["step"], line["action"]) == (5, policy)
    assert float(line["loss"]) > 0


def test_a_skipped_step_changes_nothing_but_the_step(tmp_path, capsys):
    config = toy_config(on_nonfinite="skip", log_every=1)
    task = ToyTask(config, poison=[3])  # the last step of the first epoch
    trainer = run(config, tmp_path, task)
    state, batches = trainer.new_state(), task.train_batches(0)
    for _ in range(2):
        state, _ = trainer.train_step(state, next(batches), task.resident_arrays())
    before = jax.device_get(state)
    state, metrics = trainer.train_step(state, next(batches), task.resident_arrays())
    assert not metrics["finite"]
    assert int(state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.replace(step=before.step)), before)
    assert "step 3 was skipped: loss nan" in capsys.readouterr().out
    assert sorted(losses(tmp_path)) == [1, 2, *range(4, 13)]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last_checkpoint(trainer, tmp_path)[1]))


def test_a_continued_run_skips_the_same_steps(tmp_path):
    config = toy_config(on_nonfinite="skip", log_every=1)
    trainer = run(config, tmp_path / "whole", ToyTask(config, poison=[4]))
    stopping = StopAt(config, 7, signal.SIGTERM)
    stopping.poison = [4]
    with pytest.raises(Interrupted):
        run(config, tmp_path / "parts", stopping)
    run(config, tmp_path / "parts", ToyTask(config, poison=[4]))
    assert read_records(tmp_path / "parts" / "nonfinite.jsonl") == read_records(tmp_path / "whole" / "nonfinite.jsonl")
    assert_same_checkpoint(trainer, tmp_path / "whole", tmp_path / "parts")


def test_a_run_stops_after_too_many_skipped_steps(tmp_path):
    config = toy_config(on_nonfinite="skip", max_skipped_steps=2)
    with pytest.raises(NonFiniteLossError, match=r"nan at step 6, after 2 skipped steps, config.max_skipped_steps"):
        run(config, tmp_path, ToyTask(config, poison=range(4, 100)))
    assert [line["step"] for line in read_records(tmp_path / "nonfinite.jsonl")] == [4, 5, 6]


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    steps = NonFiniteSteps(toy_config(), tmp_path, list, 0, lambda: [3])
    steps.check_state(6, {"a": jnp.ones(3), "count": jnp.ones((), jnp.int32)})
    with pytest.raises(NonFiniteLossError, match=r"weights or averages are not finite at step 6, .* step 3 remains"):
        steps.check_state(6, {"a": jnp.array([1, jnp.inf]), "count": jnp.ones((), jnp.int32)})
