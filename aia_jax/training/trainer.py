"""The training loop of every system: epochs of one jitted step, evaluation of raw and EMA weights, checkpoints."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from aia_jax.training import sharding
from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.checkpoint_recovery import recover
from aia_jax.training.metric_writer import MetricWriter
from aia_jax.training.model_arrays import Arrays, abstract_weights
from aia_jax.training.nonfinite import NonFiniteSteps
from aia_jax.training.optimizer import make_optimizer
from aia_jax.training.prediction import Predictor
from aia_jax.training.preemption import AgreedStop, stop_on_signals
from aia_jax.training.progress import StepLog
from aia_jax.training.run_record import check_same_config, write_record
from aia_jax.training.state import TrainState, initial_state
from aia_jax.training.step import make_train_step
from aia_jax.training.task import Task
from aia_jax.utils.config import check_fields
from aia_jax.utils.errors import InputError, Interrupted
from aia_jax.utils.files import exclusive_lock


class Trainer:
    """One run of one task in one workdir; `fit` starts it or continues it.

    Args:
        config: the resolved config; see `configs/base.py` for the fields.
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
        check_fields(config)
        check_same_config(self.workdir, config)
        if task.epoch_end(1) < 1:
            raise InputError(
                f"config.batch_size={config.batch_size} is larger than the training data of "
                f"{task.epoch_end(config.batch_size):,}; give one that is a multiple of {self.mesh.size} and fits"
            )
        self.total_steps = task.epoch_end(config.epochs)
        optimizer = make_optimizer(config.optimizer, self.total_steps, task.epoch_end)
        self._create = functools.partial(initial_state, task.build_model, optimizer, config.seed)
        self.abstract_state = sharding.shard_shapes(jax.eval_shape(self._create), self.mesh)
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
            skip_nonfinite=config.on_nonfinite == "skip",
        )
        self.predictor = Predictor(self.graphdef, self.mesh, self._weights_placed)

    def new_state(self) -> TrainState:
        """The state before the first step, as drawn, on the mesh."""
        return jax.jit(self._create, out_shardings=self._placed)()

    def fit(self) -> None:
        """Trains to the last epoch, from the newest checkpoint in the workdir if there is one.

        Raises:
            NonFiniteLossError: loss, gradients or weights became NaN or infinite; the last good checkpoint stands.
            Interrupted: a signal asked to stop; the state was saved first.
            InputError: another process trains there, the disk is full or read-only, or all checkpoints are damaged.
        """
        with contextlib.ExitStack() as opened:
            self._take(opened)
            checkpointer = opened.enter_context(Checkpointer(self.workdir, keep=self.config.checkpoint.keep))
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

    def _take(self, opened: contextlib.ExitStack) -> None:
        """Holds the workdir until `opened` is closed, and readies what an earlier run left there."""
        if jax.process_index() == 0:
            refusal = f"another process trains in {self.workdir}; stop it, wait for it, or give another workdir"
            try:
                self.workdir.mkdir(parents=True, exist_ok=True)
                opened.enter_context(exclusive_lock(self.workdir / ".lock", refusal))
            except OSError as error:
                reason = f"{self.workdir} cannot be written: {error.strerror}"
                raise InputError(f"{reason}; make it writable, or give another workdir") from error
        for line in recover(self.workdir):
            _say(line)

    def _start(self, checkpointer: Checkpointer) -> tuple[TrainState, int]:
        steps = checkpointer.steps()
        if steps and checkpointer.holds_progress(steps[-1]):
            items = checkpointer.restore(steps[-1], self.abstract_state.to_checkpoint())
            _say(f"continuing {self.workdir} at step {steps[-1]} of {self.total_steps}")
            return TrainState.from_checkpoint(items), checkpointer.info(steps[-1])["epoch"]
        state = self.new_state()
        if steps:
            if checkpointer.info(steps[-1]).get("part") == "backbone":
                raise InputError(f"{self.workdir} holds a backbone alone; give it as config.init_backbone")
            _say(f"starting from the converted weights in {self.workdir}")
            converted = checkpointer.restore(steps[-1], {"weights": self.abstract_state.to_checkpoint()["weights"]})
            return TrainState.from_checkpoint({**state.to_checkpoint(), **converted}), 0
        if self._initialize:
            given = self._initialize(state.weights("raw"))
            state = state.with_weights(jax.tree.map(sharding.put_whole, given, self._weights_placed))
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
        nonfinite = NonFiniteSteps(self.config, self.workdir, self.task.row_names, step, checkpointer.steps)
        with StepLog(self.config, writer, step, self.total_steps, nonfinite) as log:
            for epoch in range(done + 1, self.config.epochs + 1):
                last = self.task.epoch_end(epoch)
                while step < last:
                    log.waiting()
                    rows = next(batches)
                    batch = sharding.put_batch(rows, self.mesh)
                    log.working()
                    state, metrics = self.train_step(state, batch, resident)
                    step += 1
                    log.dispatched(step, metrics, rows["index"])
                    if step < last and (signum := stop.signum(step)):
                        log.drain()
                        nonfinite.check_state(step, state)
                        checkpointer.save(step, state.to_checkpoint(), {"epoch": epoch - 1})
                        self._interrupted(signum, step, checkpointer)
                log.drain()
                nonfinite.check_state(step, state)
                info = self._evaluate(state, epoch, writer, log)
                checkpointer.save(step, state.to_checkpoint(), info)
                if epoch < self.config.epochs and (signum := stop.signum_now()):
                    self._interrupted(signum, step, checkpointer)

    def _interrupted(self, signum: int, step: int, checkpointer: Checkpointer) -> None:
        checkpointer.wait()
        raise Interrupted(
            signum, f"stopped at step {step} of {self.total_steps}, saved; the same command continues there"
        )

    def _evaluate(self, state: TrainState, epoch: int, writer: MetricWriter, log: StepLog) -> dict[str, Any]:
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
