"""What happens to steps whose loss or gradients are NaN or infinite."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aia_jax.training.metric_writer import lines_up_to
from aia_jax.training.step import all_finite
from aia_jax.utils.errors import NonFiniteLossError
from aia_jax.utils.files import write_bytes


class NonFiniteSteps:
    """Writes what the batches of such steps were made of to `nonfinite.jsonl`, and stops the run, or lets it go on.

    Args:
        config: `on_nonfinite`: "stop", or "skip", where the step has left everything as it was; `max_skipped_steps`.
        workdir: the file goes there; each further process writes its own, `nonfinite.1.jsonl` and so on.
        row_names: what the rows of the training data are called.
        resume_step: lines of later steps are dropped, for a resumed run meets those steps again.
        saved_steps: of the checkpoints on disk.
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
        self._lines = lines_up_to(self._path, resume_step)
        self.num_skipped = sum(json.loads(line).get("action") == "skip" for line in self._lines)

    def met(self, step: int, loss: float, index: np.ndarray) -> None:
        """A step was not finite; `index` are the rows of its batch, of this process.

        Raises:
            NonFiniteLossError: the run has to stop.
        """
        skip = self._config.on_nonfinite == "skip"
        line = {"step": step, "loss": str(loss), "action": self._config.on_nonfinite, "batch": self._row_names(index)}
        self._lines.append(json.dumps(line) + "\n")
        write_bytes(self._path, "".join(self._lines).encode())
        self.num_skipped += skip
        if skip and self.num_skipped <= self._config.max_skipped_steps:
            return
        what = f"gradients are not finite at step {step} (loss {loss})" if np.isfinite(loss) else ""
        what = what or f"loss is {loss} at step {step}"
        if skip:
            what += f", after {self._config.max_skipped_steps} skipped steps, config.max_skipped_steps"
        raise NonFiniteLossError(
            f"{what}; {_standing(self._saved_steps())}, {self._path} names the batch. "
            "Look at it, lower config.optimizer.max_learning_rate or set config.optimizer.clip_norm, in another workdir"
            + ("" if skip else "; config.on_nonfinite=skip leaves such steps out")
        )

    def check_state(self, step: int, state: Any) -> None:
        """Raises NonFiniteLossError if a state that is to be saved holds a number that is not finite."""
        if not _all_finite(state):
            raise NonFiniteLossError(
                f"weights or averages are not finite at step {step}, though every loss was; "
                f"{_standing(self._saved_steps())}. Lower config.optimizer.max_learning_rate, in another workdir"
            )


_all_finite = jax.jit(all_finite)


def _standing(saved: list[int]) -> str:
    return f"the checkpoint of step {saved[-1]} stands" if saved else "no checkpoint had been written yet"
