"""Handles steps whose loss or gradients are NaN or infinite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from aia_jax.training.metric_writer import read_records, to_lines
from aia_jax.utils.errors import NonFiniteLossError
from aia_jax.utils.files import write_bytes


class NonFiniteSteps:
    """Writes the images of each batch with a NaN or infinite loss or gradient to `nonfinite.jsonl`. May stop the run.

    Args:
        config: has the fields `on_nonfinite` ("stop", or "skip": the step changes no weights) and `max_skipped_steps`.
        workdir: the folder of `nonfinite.jsonl`. Process 1 writes `nonfinite.1.jsonl`, and so on.
        row_names: function from row numbers to the names of training images or pairs; see `Task.row_names`.
        resume_step: number of steps already done. Removes lines of later steps, because the run repeats these steps.
        saved_steps: function that returns the steps of the saved checkpoints, for error messages.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        row_names: Callable[[np.ndarray], list[str]],
        resume_step: int,
        saved_steps: Callable[[], list[int]],
    ):
        self._config, self._row_names, self._saved_steps = config, row_names, saved_steps
        process = jax.process_index()
        self._path = workdir / (f"nonfinite.{process}.jsonl" if process else "nonfinite.jsonl")
        self._records = read_records(self._path, resume_step)
        self._num_skipped = sum(record.get("action") == "skip" for record in self._records)

    def handle(self, step: int, loss: float, index: np.ndarray) -> None:
        """Adds the step, with the names of this process's training rows `index`, to the file.

        Raises NonFiniteLossError to stop the run.
        """
        action, batch = self._config.on_nonfinite, self._row_names(index)
        self._records.append({"step": step, "loss": str(loss), "action": action, "batch": batch})
        write_bytes(self._path, to_lines(self._records))
        skip = action == "skip"
        self._num_skipped += skip
        if skip and self._num_skipped <= self._config.max_skipped_steps:
            return
        gradients = f"gradients are not finite at step {step} (loss {loss})"
        problem = gradients if np.isfinite(loss) else f"loss is {loss} at step {step}"
        if skip:
            problem += f", after {self._config.max_skipped_steps} skipped steps, config.max_skipped_steps"
        raise NonFiniteLossError(
            f"{problem}; {self._last_checkpoint()}, {self._path} names the batch. Check it, then train in another "
            "workdir with a lower config.optimizer.max_learning_rate or with config.optimizer.clip_norm"
            + ("" if skip else "; config.on_nonfinite=skip skips such steps")
        )

    def check_state(self, step: int, state: Any) -> None:
        """Checks a `TrainState` before it is saved. Raises NonFiniteLossError if a number is NaN or infinite."""
        shards = (shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards)
        finite = all(np.isfinite(shard.data).all() for shard in shards if shard.replica_id == 0)
        if not multihost_utils.process_allgather(np.array(finite)).all():  # each process has a part of the state
            raise NonFiniteLossError(
                f"weights or averages are not finite at step {step}, although every loss was finite; "
                f"{self._last_checkpoint()}. Train in another workdir with a lower config.optimizer.max_learning_rate"
            )

    def _last_checkpoint(self) -> str:
        saved = self._saved_steps()
        return f"the checkpoint of step {saved[-1]} remains" if saved else "no checkpoint had been written yet"
