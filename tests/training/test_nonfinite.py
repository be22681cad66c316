import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.nonfinite import NonFiniteSteps
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError, Interrupted, NonFiniteLossError
from tests.helpers.toy_task import StopAt, ToyTask, final_items, losses, run, toy_config


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "nonfinite.jsonl").read_text().splitlines()]


def batch_of(config, step: int) -> list[str]:
    task = ToyTask(config)
    return task.row_names(next(task.train_batches(step - 1))["index"])


class BadGradients(ToyTask):
    """A finite loss, whose gradients are NaN at `poison_step`."""

    def train_batches(self, start_step):
        poison, self.poison_step = self.poison_step, None
        for step, batch in enumerate(super().train_batches(start_step), start_step + 1):
            yield {**batch, "scale": np.full(len(batch["rows"]), step != poison, np.float32)}

    def loss(self, model, batch, key):
        loss, metrics = super().loss(model, batch, key)
        return loss + 1e-6 * jnp.sqrt(batch["scale"].mean() * loss), metrics


def test_a_non_finite_loss_stops_and_names_step_and_batch(tmp_path):
    config = toy_config()
    with pytest.raises(NonFiniteLossError, match=r"loss is nan at step 8; the checkpoint of step 6 remains, .* names"):
        run(config, tmp_path, poison_step=8)
    assert lines(tmp_path) == [{"step": 8, "loss": "nan", "action": "stop", "batch": batch_of(config, 8)}]
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps() == [3, 6]
    run(config, tmp_path)  # the same command, with what was wrong mended
    assert final_items(run(config, tmp_path), tmp_path)[0] == 12


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_gradients_are_looked_at_too(tmp_path, policy):
    config = toy_config(on_nonfinite=policy, max_skipped_steps=1)
    trainer = Trainer(config, BadGradients(config, poison_step=5), tmp_path, devices=jax.devices()[:2])
    if policy == "stop":
        with pytest.raises(NonFiniteLossError, match=r"gradients are not finite at step 5 \(loss 0\.\d+\); the"):
            trainer.fit()
    else:
        trainer.fit()
    (line,) = lines(tmp_path)
    assert (line["step"], line["action"]) == (5, policy)
    assert float(line["loss"]) > 0


def test_a_skipped_step_leaves_everything_as_it_was(tmp_path, capsys):
    config = toy_config(on_nonfinite="skip", log_every=1)
    trainer = run(config, tmp_path, poison_step=3)  # the last step of the first epoch
    state, batches = trainer.new_state(), ToyTask(config, poison_step=3).train_batches(0)
    resident = trainer.task.resident_arrays()
    for _ in range(2):
        state, _ = trainer.train_step(state, next(batches), resident)
    before = jax.device_get(state)
    state, metrics = trainer.train_step(state, next(batches), resident)
    assert not metrics["finite"]
    assert int(state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.replace(step=before.step)), before)
    assert "step 3 was skipped: loss nan" in capsys.readouterr().out
    assert sorted(losses(tmp_path)) == [1, 2, *range(4, 13)]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final_items(trainer, tmp_path)[1]))


def test_a_resumed_run_skips_the_same(tmp_path):
    config = toy_config(on_nonfinite="skip", log_every=1)
    trainer = run(config, tmp_path / "whole", poison_step=4)
    stopping = StopAt(config, 7, signal.SIGTERM)
    stopping.poison_step = 4
    with pytest.raises(Interrupted):
        Trainer(config, stopping, tmp_path / "parts", devices=jax.devices()[:2]).fit()
    run(config, tmp_path / "parts", poison_step=4)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    expected, actual = (final_items(trainer, tmp_path / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, expected, actual)


def test_skipping_has_an_end(tmp_path):
    config = toy_config(on_nonfinite="skip", max_skipped_steps=2)

    class Poisoned(ToyTask):
        def train_batches(self, start_step):
            for step, batch in enumerate(super().train_batches(start_step), start_step + 1):
                yield {**batch, "rows": batch["rows"] * (np.nan if step >= 4 else 1)}

    with pytest.raises(
        NonFiniteLossError, match=r"nan at step 6, after 2 skipped steps, config.max_skipped_steps; the"
    ):
        Trainer(config, Poisoned(config), tmp_path, devices=jax.devices()[:2]).fit()
    assert [line["step"] for line in lines(tmp_path)] == [4, 5, 6]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    steps = NonFiniteSteps(toy_config(), tmp_path, list, 0, lambda: [3])
    steps.check_state(6, {"a": jnp.ones(3), "count": jnp.ones((), jnp.int32)})
    with pytest.raises(NonFiniteLossError, match=r"weights or averages are not finite at step 6, .* step 3 remains"):
        steps.check_state(6, {"a": jnp.array([1, jnp.inf]), "count": jnp.ones((), jnp.int32)})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"on_nonfinite": "ignore"}, "config.on_nonfinite='ignore' is unknown; known: stop, skip"),
        ({"max_skipped_steps": 0}, "config.max_skipped_steps=0 must be at least 1"),
    ],
)
def test_bad_policies_are_refused(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        run(toy_config(**overrides), tmp_path)
