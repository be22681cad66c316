"""The training loop of every system: epochs of one jitted step, evaluation of raw and EMA weights, checkpoints."""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from aia_jax.errors import InputError, Interrupted, NonFiniteLossError
from aia_jax.training import sharding
from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.interruption import AgreedStop, stop_on_signals
from aia_jax.training.logging import MetricWriter
from aia_jax.training.optimizer import make_optimizer
from aia_jax.training.prediction import Predictor
from aia_jax.training.record import check_same_config, write_record
from aia_jax.training.state import (
    Arrays,
    TrainState,
    abstract_weights,
    initial_state,
    make_train_step,
    on_mesh,
)

# Steps dispatched ahead of the one whose loss is read: the device never waits for the host, memory stays bounded.
_IN_FLIGHT = 4


class Task(Protocol):
    """What differs between systems, as the loop sees it."""

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """A freshly initialised model."""

    def loss(self, model: nnx.Module, batch: Arrays, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean loss of a batch in training mode, and further scalars to log."""

    def predict_split(self, predictor: Predictor, weights: Sequence[Arrays], split: str) -> list[dict[str, np.ndarray]]:
        """Outputs for the whole of `split` under each of `weights`, by calls of `predictor`."""

    def epoch_end(self, epoch: int) -> int:
        """The step after which `epoch` (1-based) is complete."""

    def resident_arrays(self) -> dict[str, np.ndarray]:
        """Training arrays to keep in device memory; rows of them are taken by `batch["index"]`."""

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of every global batch from `start_step` on, without end."""

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must say of its data to be used rightly, JSON-able."""

    def prepare(self, weights: Arrays, splits: Sequence[str]) -> None:
        """Told the model's inference weights before batches of `splits` are asked for: the time to compute and check.

        What is frozen in the weights stays so.
        """

    def evaluate(self, split: str, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """Metrics of the outputs for a whole split."""


class Trainer:
    """One run of one task in one workdir; `fit` starts it or continues it.

    Args:
        config: the resolved config; see `configs/common.py` for the fields.
        task: what to train.
        workdir: `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `config.json` and `environment.json` go there.
        devices: where to train; all devices of all hosts if None.
        initialize: given the weights `{"params", "stats", "constants"}` as drawn, those that a new run starts from.

    Raises:
        InputError: for a batch size or `mesh.fsdp` that does not fit the devices, or a workdir of another config.
    """

    def __init__(
        self,
        config: ConfigDict,
        task: Task,
        workdir: str | Path,
        *,
        devices: list[jax.Device] | None = None,
        initialize: Callable[[Arrays], Arrays] | None = None,
    ):
        self.config, self.task, self.workdir = config, task, Path(workdir)
        self._initialize = initialize
        self.mesh = sharding.data_mesh(devices, fsdp=config.mesh.fsdp)
        sharding.check_batch_size("batch_size", config.batch_size, self.mesh, config.accumulate_steps)
        sharding.check_batch_size("eval.batch_size", config.eval.batch_size, self.mesh)
        check_same_config(self.workdir, config)
        if task.epoch_end(1) < 1:
            raise InputError(
                f"config.batch_size={config.batch_size} is larger than the training data; give one that is a multiple "
                f"of {self.mesh.size} and fits"
            )
        self.total_steps = task.epoch_end(config.epochs)
        optimizer = make_optimizer(config.optimizer, self.total_steps, task.epoch_end)
        self._create = functools.partial(initial_state, task.build_model, optimizer, config.seed)
        self.abstract_state = on_mesh(jax.eval_shape(self._create), self.mesh)
        self.graphdef, _ = abstract_weights(task.build_model, self.mesh)
        self._placed = sharding.shardings(self.abstract_state)
        self._weights_placed = sharding.shardings(self.abstract_state.weights("raw"))
        self.train_step = make_train_step(
            self.graphdef,
            task.loss,
            optimizer,
            ema_decay=config.ema_decay,
            seed=config.seed,
            mesh=self.mesh,
            accumulate_steps=config.accumulate_steps,
            state_sharding=self._placed,
        )
        self.predictor = Predictor(self.graphdef, self.mesh, self._weights_placed)

    def new_state(self) -> TrainState:
        """The state before the first step, as drawn, on the mesh."""
        return jax.jit(self._create, out_shardings=self._placed)()

    def fit(self) -> None:
        """Trains to the last epoch, from the newest checkpoint in the workdir if there is one.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite; the last good checkpoint stands.
            Interrupted: a signal asked to stop; the state was saved first.
        """
        with Checkpointer(self.workdir, keep=self.config.checkpoint.keep) as checkpointer:
            state, epochs_done = self._start(checkpointer)
            if epochs_done >= self.config.epochs:
                _say(f"{self.workdir} holds all {epochs_done} epochs of this run; nothing to train")
                return
            write_record(self.workdir, self.config)
            # Whatever is computed on first use is computed here, where a signal still stops at once.
            splits = ("train", self.config.eval.split)
            self.task.prepare(sharding.gathered(state.weights("raw"), self.mesh), splits)
            resident = sharding.put_replicated(self.task.resident_arrays(), self.mesh)
            batches = self.task.train_batches(int(state.step))
            with MetricWriter(self.workdir, int(state.step)) as writer, stop_on_signals() as request:
                stop = AgreedStop(request, self.mesh)
                self._epochs(state, epochs_done, batches, resident, checkpointer, writer, stop)

    def _start(self, checkpointer: Checkpointer) -> tuple[TrainState, int]:
        steps = checkpointer.steps()
        if steps and checkpointer.holds_progress(steps[-1]):
            items = checkpointer.restore(steps[-1], self.abstract_state.items())
            _say(f"continuing {self.workdir} at step {steps[-1]} of {self.total_steps}")
            return TrainState.from_items(items), checkpointer.info(steps[-1])["epoch"]
        state = self.new_state()
        if steps:
            if checkpointer.info(steps[-1]).get("part") == "backbone":
                raise InputError(f"{self.workdir} holds a backbone alone; give it as config.init_backbone")
            _say(f"starting from the converted weights in {self.workdir}")
            converted = checkpointer.restore(steps[-1], {"weights": self.abstract_state.items()["weights"]})
            return TrainState.from_items({**state.items(), **converted}), 0
        if self._initialize:
            given = self._initialize(state.weights("raw"))
            state = state.starting_from(jax.tree.map(sharding.put_whole, given, self._weights_placed))
        return state, 0

    def _epochs(
        self,
        state: TrainState,
        done: int,
        batches: Iterator[Arrays],
        resident: Arrays,
        checkpointer: Checkpointer,
        writer: MetricWriter,
        stop: AgreedStop,
    ) -> None:
        step = int(state.step)
        with StepLog(self.config, writer, step, self.total_steps, checkpointer.steps) as log:
            for epoch in range(done + 1, self.config.epochs + 1):
                last = self.task.epoch_end(epoch)
                while step < last:
                    log.waiting()
                    batch = sharding.put_batch(next(batches), self.mesh)
                    log.working()
                    state, metrics = self.train_step(state, batch, resident)
                    step += 1
                    log.dispatched(step, metrics)
                    if step < last and (signum := stop.signum(step)):
                        log.drain()
                        checkpointer.save(step, state.items(), {"epoch": epoch - 1})
                        self._interrupted(signum, step, checkpointer)
                log.drain()
                info = self._evaluate(state, epoch, writer, log)
                checkpointer.save(step, state.items(), info)
                if epoch < self.config.epochs and (signum := stop.signum_now()):
                    self._interrupted(signum, step, checkpointer)

    def _interrupted(self, signum: int, step: int, checkpointer: Checkpointer) -> None:
        checkpointer.wait()
        raise Interrupted(
            signum, f"stopped at step {step} of {self.total_steps}, saved; the same command continues there"
        )

    def _evaluate(self, state: TrainState, epoch: int, writer: MetricWriter, log: "StepLog") -> dict[str, Any]:
        split, metric = self.config.eval.split, self.config.eval.metric
        names, evaluations = ("raw", "ema") if self.config.ema_decay else ("raw",), {}
        predicted = self.task.predict_split(self.predictor, [state.weights(name) for name in names], split)
        for name, outputs in zip(names, predicted, strict=True):
            evaluations[name] = self.task.evaluate(split, outputs)
            if metric not in evaluations[name]:
                known = ", ".join(evaluations[name])
                raise InputError(f"config.eval.metric={metric!r} is not a metric of this task; known: {known}")
            writer.write(int(state.step), f"{split}_{name}", {"epoch": epoch, **evaluations[name]})
        better = max(names, key=lambda name: evaluations[name][metric])
        log.print(
            f"epoch {epoch}/{self.config.epochs}  loss {log.epoch_loss():.5f}  {split} {metric}: "
            + "  ".join(f"{name} {values[metric]:.4f}" for name, values in evaluations.items())
        )
        chosen = {"metric": evaluations[better][metric], "weights": better}
        return {"epoch": epoch, **chosen, "evaluations": evaluations, **self.task.describe()}


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


class StepLog:
    """Progress bar, records and the guard against a non-finite loss, each a few steps behind the dispatch."""

    def __init__(
        self,
        config: ConfigDict,
        writer: MetricWriter,
        step: int,
        total_steps: int,
        saved_steps: Callable[[], list[int]],
    ):
        self._config, self._writer, self._saved_steps = config, writer, saved_steps
        self._in_flight: deque[tuple[int, Arrays]] = deque()
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

    def dispatched(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """A step was given to the devices; reads the metrics of one that finished."""
        self._in_flight.append((step, metrics))
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
        if jax.process_index() == 0:
            self._bar.write(line)
        self._interval_start, self._waited, self._interval = time.perf_counter(), 0.0, []

    def _retire(self) -> None:
        step, metrics = self._in_flight.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite(values["loss"]):
            saved = self._saved_steps()
            good = f"the checkpoint of step {saved[-1]} stands" if saved else "no checkpoint had been written yet"
            raise NonFiniteLossError(
                f"loss is {values['loss']} at step {step}; {good}. "
                "Lower config.optimizer.max_learning_rate or set config.optimizer.clip_norm, in another workdir"
            )
        self._bar.update(self._config.batch_size)
        self._interval.append(values)
        self._epoch_losses.append(values["loss"])
        if step % self._config.log_every == 0:
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
