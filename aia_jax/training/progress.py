"""What is told of the steps while they run."""

import time
from collections import deque

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from aia_jax.training.metric_writer import MetricWriter
from aia_jax.training.model_arrays import Arrays
from aia_jax.training.nonfinite import NonFiniteSteps

# Steps dispatched ahead of the one whose loss is read: the device never waits for the host, memory stays bounded.
_IN_FLIGHT = 4


class StepLog:
    """Progress bar, records and the guard against a non-finite loss, each a few steps behind the dispatch."""

    def __init__(
        self,
        config: ConfigDict,
        writer: MetricWriter,
        step: int,
        total_steps: int,
        nonfinite: NonFiniteSteps,
    ):
        self._config, self._writer, self._nonfinite = config, writer, nonfinite
        self._in_flight: deque[tuple[int, Arrays, np.ndarray]] = deque()
        self._interval: list[dict[str, float]] = []
        self._epoch_losses: list[float] = []
        self._bar = tqdm(
            total=total_steps * config.batch_size,
            initial=step * config.batch_size,
            unit="img",
            dynamic_ncols=True,
            disable=None if jax.process_index() == 0 else True,
            desc="train",
        )
        self._mark = self._interval_start = time.perf_counter()
        self._waited = 0.0

    def waiting(self) -> None:
        """The host starts to wait for input."""
        self._mark = time.perf_counter()

    def working(self) -> None:
        """The input is there."""
        self._waited += time.perf_counter() - self._mark

    def dispatched(self, step: int, metrics: dict[str, jax.Array], index: np.ndarray) -> None:
        """A step on the rows `index` was given to the devices; reads the metrics of one that finished."""
        self._in_flight.append((step, metrics, index))
        if len(self._in_flight) > _IN_FLIGHT:
            self._retire()

    def drain(self) -> None:
        """Waits for all dispatched steps."""
        while self._in_flight:
            self._retire()

    def epoch_loss(self) -> float:
        """Mean loss since the last call."""
        mean = float(np.mean(self._epoch_losses)) if self._epoch_losses else float("nan")
        self._epoch_losses = []
        return mean

    def print(self, line: str) -> None:
        """A line above the progress bar."""
        self._tell(line)
        self._interval_start, self._waited, self._interval = time.perf_counter(), 0.0, []

    def _tell(self, line: str) -> None:
        if jax.process_index() == 0:
            self._bar.write(line)

    def _retire(self) -> None:
        step, metrics, index = self._in_flight.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        finite = values.pop("finite")
        self._bar.update(self._config.batch_size)
        if finite:
            self._interval.append(values)
            self._epoch_losses.append(values["loss"])
        else:
            self._nonfinite.met(step, values["loss"], index)
            self._tell(f"step {step} was skipped: loss {values['loss']}, or its gradients; see nonfinite.jsonl")
        if step % self._config.log_every == 0 and self._interval:
            self._report(step)

    def _report(self, step: int) -> None:
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
        self._interval_start, self._waited, self._interval = time.perf_counter(), 0.0, []

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(self, *_exc) -> None:
        self._bar.close()
