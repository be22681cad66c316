"""Logs training progress: a progress bar and metrics. Reads each step's metrics a few steps later, without waiting."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from aia_jax.training.metric_writer import MetricWriter
from aia_jax.training.model_arrays import Arrays
from aia_jax.training.nonfinite import NonFiniteSteps

# Number of steps whose metrics are not read yet: enough to keep the devices busy, with bounded memory.
_IN_FLIGHT = 4


class Progress(contextlib.AbstractContextManager):
    """Shows a progress bar, and writes metrics of kind "train" with `writer` every `config.log_every` steps.

    Passes each step with a NaN or infinite loss or gradient to `nonfinite`. `step` is the number of steps already done.
    """

    def __init__(
        self, config: ConfigDict, writer: MetricWriter, step: int, total_steps: int, nonfinite: NonFiniteSteps
    ):
        self._config, self._writer, self._nonfinite = config, writer, nonfinite
        self._in_flight: deque[tuple[int, Arrays, np.ndarray]] = deque()
        self._epoch_losses: list[float] = []
        self._bar = tqdm(
            total=total_steps * config.batch_size,
            initial=step * config.batch_size,
            unit="img",
            dynamic_ncols=True,
            disable=jax.process_index() > 0 or None,
            desc="train",
        )
        self._start_interval()

    @contextlib.contextmanager
    def input_wait(self) -> Iterator[None]:
        """Context manager. The time inside the context counts as time spent waiting for input."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def dispatched(self, step: int, metrics: dict[str, jax.Array], index: np.ndarray) -> None:
        """Adds a step on the training rows `index`. Reads metrics of an earlier step. For errors, see `drain`."""
        self._in_flight.append((step, metrics, index))
        if len(self._in_flight) > _IN_FLIGHT:
            self._read_oldest()

    def drain(self) -> None:
        """Waits for all dispatched steps and reads their metrics. Raises the errors of `NonFiniteSteps.handle`."""
        while self._in_flight:
            self._read_oldest()

    def epoch_loss(self) -> float:
        """Returns the mean loss of the steps since the last call, without non-finite steps; NaN if there are none."""
        mean = float(np.mean(self._epoch_losses)) if self._epoch_losses else float("nan")
        self._epoch_losses = []
        return mean

    def print(self, line: str) -> None:
        """Prints a line above the progress bar. The next "train" metrics do not include the steps before this line."""
        self._print(line)
        self._start_interval()

    def _print(self, line: str) -> None:
        if jax.process_index() == 0:
            self._bar.write(line)

    def _start_interval(self) -> None:
        self._interval: list[dict[str, float]] = []
        self._interval_start, self._waited = time.perf_counter(), 0.0

    def _read_oldest(self) -> None:
        step, metrics, index = self._in_flight.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        finite = values.pop("finite")
        self._bar.update(self._config.batch_size)
        if finite:
            self._interval.append(values)
            self._epoch_losses.append(values["loss"])
        else:
            self._nonfinite.handle(step, values["loss"], index)
            self._print(f"step {step} was skipped: loss {values['loss']}, or gradients not finite; see nonfinite.jsonl")
        if step % self._config.log_every == 0 and self._interval:
            self._write_record(step)

    def _write_record(self, step: int) -> None:
        elapsed = time.perf_counter() - self._interval_start
        mean_loss = float(np.mean([values["loss"] for values in self._interval]))
        record = {
            **self._interval[-1],
            "loss": mean_loss,
            "images_per_second": len(self._interval) * self._config.batch_size / elapsed,
            "input_wait": self._waited / elapsed,
        }
        self._writer.write(step, "train", record)
        self._bar.set_postfix(loss=f"{mean_loss:.5f}", wait=f"{record['input_wait']:.0%}", refresh=False)
        self._start_interval()

    def __exit__(self, *_exc: object) -> None:
        self._bar.close()
