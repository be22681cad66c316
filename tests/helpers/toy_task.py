"""A task that trains in a second: a two-layer network with batch norm and dropout on random numbers."""

import json
import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.configs.base import ONE_CYCLE, run_config
from aia_jax.models.layers.batch_norm import BatchNorm
from aia_jax.models.layers.common import dropout
from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.prediction import Predictor
from aia_jax.training.trainer import Trainer

ROWS, FEATURES = 50, 6


def toy_config(**overrides) -> ConfigDict:
    """Returns a config with the fields that the trainer reads."""
    config = run_config("toy", "rows")
    config.update({"seed": 3, "epochs": 4, "batch_size": 16, "ema_decay": 0.9, "log_every": 2, "max_skipped_steps": 2})
    config.update({"width": 8, "dropout": 0.2, "data": {"root": "a"}})
    config.optimizer.update({**ONE_CYCLE, "pct_start": 0.3, "max_learning_rate": 1e-2, "decay_epochs": 1})
    config.eval = ConfigDict({"batch_size": 16, "split": "test", "metric": "accuracy"})
    config.update_from_flattened_dict(overrides)
    return config


def local_rows(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns this process's rows of a batch."""
    return {name: np.array_split(rows, jax.process_count())[jax.process_index()] for name, rows in batch.items()}


class ToyModel(nnx.Module):
    """Maps rows `[B, FEATURES]` to logits `[B]`."""

    def __init__(self, width: int, dropout: float, rngs: nnx.Rngs):
        self.first = nnx.Linear(FEATURES, width, rngs=rngs)
        self.norm = BatchNorm(width, rngs=rngs)
        self.second = nnx.Linear(width, 1, rngs=rngs)
        self.dropout = dropout

    def __call__(self, rows: jax.Array, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        pixels = self.first(rows)[:, None, None]
        hidden = jax.nn.relu(self.norm(pixels, train=train))[:, 0, 0]
        if train:
            hidden = dropout(hidden, self.dropout, key)
        return self.second(hidden)[:, 0]


class ToyTask:
    """Predicts the sign of the sum of a row. The input of the steps `poison` is NaN."""

    def __init__(self, config: ConfigDict, poison: Container[int] = ()):
        self.config, self.poison = config, poison
        rng = np.random.default_rng(0)
        self.rows = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
        self.targets = (self.rows.sum(1) > 0).astype(np.float32)

    def build_model(self, rngs: nnx.Rngs) -> ToyModel:
        return ToyModel(self.config.width, self.config.dropout, rngs)

    def epoch_end(self, epoch: int) -> int:
        return epoch * ROWS // self.config.batch_size

    def resident_arrays(self) -> dict[str, np.ndarray]:
        return {"target": self.targets}

    def prepare(self, weights: dict, splits: Sequence[str]) -> None:
        pass

    def row_names(self, index: np.ndarray) -> list[str]:
        return [f"row {number}" for number in index]

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        step = start_step
        while True:
            step += 1
            index = np.random.default_rng(step).choice(ROWS, self.config.batch_size, replace=False).astype(np.int32)
            rows = self.rows[index]
            rows = np.full_like(rows, np.nan) if step in self.poison else rows
            yield local_rows({"index": index, "rows": rows})

    def eval_batches(self, split: str) -> Iterator[dict[str, np.ndarray]]:
        size = self.config.eval.batch_size
        for start in range(0, ROWS, size):
            index = np.arange(start, start + size)
            yield local_rows({"rows": self.rows[index % ROWS], "mask": index < ROWS})

    def loss(self, model: ToyModel, batch: dict[str, jax.Array], key: jax.Array):
        logits = model(batch["rows"], train=True, key=key)
        losses = jnp.logaddexp(0, logits) - batch["target"] * logits
        return losses.mean(), {}

    def predict_split(self, predictor: Predictor, weights: Sequence[dict], split: str) -> list[dict[str, np.ndarray]]:
        return predictor(self.predict, weights, self.eval_batches(split))

    def predict(self, model: ToyModel, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"logits": model(batch["rows"], train=False)}

    def describe(self) -> dict:
        return {"features": FEATURES}

    def evaluate(self, split: str, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        assert outputs["logits"].shape == (ROWS,)
        return {"accuracy": float(((outputs["logits"] > 0) == (self.targets > 0)).mean())}


class StopAt(ToyTask):
    """Sends this process a signal while it prepares the batch of step `stop_step`."""

    def __init__(self, config: ConfigDict, stop_step: int, signum: int):
        super().__init__(config)
        self.stop_step, self.signum = stop_step, signum

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        for step, batch in enumerate(super().train_batches(start_step), start_step + 1):
            if step == self.stop_step:
                os.kill(os.getpid(), self.signum)
            yield batch


class Scored(ToyTask):
    """Returns given accuracies, one for each evaluation; raises KeyboardInterrupt after the last."""

    def __init__(self, config: ConfigDict, accuracies: Sequence[float]):
        super().__init__(config)
        self.accuracies = iter(accuracies)

    def evaluate(self, split: str, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        for accuracy in self.accuracies:
            return {"accuracy": accuracy}
        raise KeyboardInterrupt


def run(config: ConfigDict, workdir: Path, task: ToyTask | None = None, *, num_devices: int = 2) -> Trainer:
    """Trains a task, the toy task if none is given."""
    trainer = Trainer(config, task or ToyTask(config), workdir, devices=jax.devices()[:num_devices])
    trainer.fit()
    return trainer


def last_checkpoint(trainer: Trainer, workdir: Path) -> tuple[int, dict, dict]:
    """Returns the step, the arrays and the info of the newest checkpoint."""
    with Checkpointer(workdir) as checkpointer:
        last = checkpointer.steps()[-1]
        return last, checkpointer.restore(last, trainer.abstract_state.to_checkpoint()), checkpointer.info(last)


def assert_same_checkpoint(trainer: Trainer, expected: Path, actual: Path) -> None:
    """Compares the newest checkpoints of two workdirs to the bit."""
    jax.tree.map(np.testing.assert_array_equal, last_checkpoint(trainer, actual), last_checkpoint(trainer, expected))


def losses(workdir: Path) -> dict[int, float]:
    """Returns the recorded losses by step, as written."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
