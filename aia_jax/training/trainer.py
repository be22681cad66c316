"""Trains the model of a `Task`: runs the jitted step, evaluates raw and averaged weights, and saves checkpoints."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aia_jax.training import sharding
from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.checkpoint_recovery import recover
from aia_jax.training.metric_writer import MetricWriter
from aia_jax.training.model_arrays import Arrays, abstract_weights
from aia_jax.training.nonfinite import NonFiniteSteps
from aia_jax.training.optimizer import check_optimizer, make_optimizer
from aia_jax.training.prediction import Predictor
from aia_jax.training.preemption import AgreedStop, stop_on_signals
from aia_jax.training.progress import Progress
from aia_jax.training.runs import check_complete_model, check_same_config, check_same_data, write_record
from aia_jax.training.state import TrainState, initial_ema, initial_state
from aia_jax.training.step import make_train_step
from aia_jax.training.task import Task
from aia_jax.utils.config_fields import check_fields
from aia_jax.utils.errors import InputError, Interrupted
from aia_jax.utils.files import check_writable, exclusive_lock, os_errors_as_input_errors


class Trainer:
    """Trains one task in one workdir. `fit` starts or continues the run.

    The constructor checks all that needs no data before it loads the training data.

    Args:
        config: see `configs/base.py` for the fields.
        task: the system to train: data, model and loss.
        workdir: folder for `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `config.json` and `environment.json`.
        devices: devices to train on. None means all devices of all hosts.
        shared_workdir: whether all processes see the same workdir. If not, process 0 alone saves checkpoints, and each
            process needs a copy of its workdir before `fit`.
        initialize: function from the random weights `{"params", "stats", "constants"}` to the weights of a new run.

    Raises:
        InputError: a batch size or `mesh.fsdp` does not fit the devices, or the workdir holds a run of another config.
            `mesh.fsdp` is above 1 in several processes that do not share the workdir.
    """

    def __init__(
        self,
        config: ConfigDict,
        task: Task,
        workdir: str | Path,
        *,
        devices: list[jax.Device] | None = None,
        initialize: Callable[[Arrays], Arrays] | None = None,
        shared_workdir: bool = True,
    ):
        self.config, self.task, self.workdir, self._initialize = config, task, Path(workdir), initialize
        check_fields(config)
        self._shared = shared_workdir or jax.process_count() == 1
        if not self._shared and config.mesh.fsdp > 1:
            raise InputError(
                f"config.mesh.fsdp={config.mesh.fsdp}: in object storage, a run of several processes needs a whole "
                "copy of the state in each process; set it to 1, or give a workdir on a disk that all hosts share"
            )
        self.mesh = sharding.data_mesh(devices, fsdp=config.mesh.fsdp)
        sharding.check_batch_size("batch_size", config.batch_size, self.mesh, config.accumulate_steps)
        sharding.check_batch_size("eval.batch_size", config.eval.batch_size, self.mesh)
        check_writable(self.workdir, "--workdir")
        check_same_config(self.workdir, config)
        check_optimizer(config.optimizer)
        graphdef, _ = abstract_weights(task.build_model, self.mesh)
        if task.epoch_end(1) < 1:
            unit = f", a multiple of {self.mesh.size}" if self.mesh.size > 1 else ""
            raise InputError(
                f"config.batch_size={config.batch_size} is larger than the training data, at most "
                f"{task.epoch_end(config.batch_size):,}; set a smaller one{unit}"
            )
        self.total_steps = task.epoch_end(config.epochs)
        optimizer = make_optimizer(config.optimizer, self.total_steps, task.epoch_end)
        self._initial_state = functools.partial(initial_state, task.build_model, optimizer, config.seed)
        self.abstract_state = sharding.shard_shapes(jax.eval_shape(self._initial_state), self.mesh)
        self._state_sharding = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        self._weights_sharding = self._state_sharding.weights("raw")
        self.train_step = make_train_step(
            graphdef,
            task.loss,
            optimizer,
            ema_decay=config.ema_decay,
            seed=config.seed,
            mesh=self.mesh,
            accumulate_steps=config.accumulate_steps,
            state_sharding=self._state_sharding,
            skip_nonfinite=config.on_nonfinite == "skip",
        )
        self.predictor = Predictor(graphdef, self.mesh, self._weights_sharding)

    def new_state(self) -> TrainState:
        """Returns the state before the first step, with random weights, placed on the mesh."""
        # On CPUs, XLA takes long to compile the random numbers of all layers. With level 1 they are the same. JAX's
        # option for fewer optimisations sets level 0.
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        level_1 = on_cpu and not jax.config.read("jax_disable_most_optimizations")
        fast = {"xla_backend_optimization_level": 1} if level_1 else None
        return jax.jit(self._initial_state, out_shardings=self._state_sharding, compiler_options=fast)()

    def fit(self) -> None:
        """Trains to the last epoch. Continues from the newest checkpoint in the workdir if there is one.

        Raises:
            NonFiniteLossError: loss, gradients or weights became NaN or infinite. The last good checkpoint remains.
            Interrupted: a signal stopped the run after the state was saved.
            InputError: another process trains in the workdir, the disk is full or read-only, all checkpoints are
                damaged, or another version of aia_jax saved the newest checkpoint.
        """
        with contextlib.ExitStack() as stack:
            self._lock_workdir(stack)
            for line in recover(self.workdir, shared=self._shared):
                _print(line)
            keep = self.config.checkpoint.keep
            checkpointer = stack.enter_context(Checkpointer(self.workdir, keep=keep, shared=self._shared))
            state, epochs_done = self._first_state(checkpointer)
            if epochs_done >= self.config.epochs:
                _print(f"{self.workdir} holds all {epochs_done} epochs of this run; nothing to train")
                return
            write_record(self.workdir, self.config)
            self._set_thresholds_aside()
            self._train(state, epochs_done, checkpointer, stack)

    def _lock_workdir(self, stack: contextlib.ExitStack) -> None:
        """Creates the workdir and locks it until `stack` closes."""
        if jax.process_index():
            return
        refusal = f"another process trains in {self.workdir}; stop it, wait for it, or give another workdir"
        with os_errors_as_input_errors(self.workdir, None, "make it writable, or give another workdir"):
            self.workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(self.workdir / ".lock", refusal))

    def _set_thresholds_aside(self) -> None:
        """Renames `thresholds.json`, because it was fitted to weights that training replaces."""
        fitted = self.workdir / "thresholds.json"
        if jax.process_index() == 0 and fitted.exists():
            fitted.replace(fitted.with_name("thresholds.old.json"))
            _print(f"{fitted} was for earlier weights: renamed to thresholds.old.json; fit it again after training")

    def _first_state(self, checkpointer: Checkpointer) -> tuple[TrainState, int]:
        """Returns the state from which training starts or continues, and the number of completed epochs."""
        last = max(checkpointer.steps(), default=None)
        if last is not None and checkpointer.has_progress(last):
            info = checkpointer.info(last)
            facts = {name: value for name, value in self._data_facts.items() if name in info}  # old ones have fewer
            check_same_data(self.workdir, info, facts)
            restored = checkpointer.restore(last, self.abstract_state.to_checkpoint())
            _print(f"continuing {self.workdir} at step {last} of {self.total_steps}")
            return TrainState.from_checkpoint(restored), info["epoch"]
        state = self.new_state()
        if last is not None:
            check_complete_model(self.workdir, checkpointer.info(last))
            _print(f"starting from the converted weights in {self.workdir}")
            weights = {"weights": self.abstract_state.to_checkpoint()["weights"]}
            converted = checkpointer.restore(last, weights)
            state = TrainState.from_checkpoint({**state.to_checkpoint(), **converted})
        elif self._initialize:
            given = self._initialize(state.weights("raw"))
            weights = jax.tree.map(sharding.put_array, given, self._weights_sharding)
            state = state.replace(**weights, ema=initial_ema(weights))
        return state, 0

    @functools.cached_property
    def _data_facts(self) -> dict[str, Any]:
        """Facts about the data that each checkpoint stores: those of the task, and a digest of the training rows."""
        rows = self.task.row_names(np.arange(self.task.epoch_end(self.config.batch_size)))
        return {**self.task.describe(), "train_rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}

    def _train(
        self, state: TrainState, epochs_done: int, checkpointer: Checkpointer, stack: contextlib.ExitStack
    ) -> None:
        """Runs the remaining epochs. Evaluates and saves after each epoch. `stack` closes the metric files."""
        step = int(state.step)
        # Loads data before it catches signals, so a signal while data are loaded stops the process immediately.
        self.task.prepare(sharding.gather(state.weights("raw"), self.mesh), ("train", self.config.eval.split))
        resident = sharding.put_replicated(self.task.resident_arrays(), self.mesh)
        batches = self.task.train_batches(step)
        writer = stack.enter_context(MetricWriter(self.workdir, step))  # removes records of later steps
        nonfinite = NonFiniteSteps(self.config, self.workdir, self.task.row_names, step, checkpointer.steps)
        progress = Progress(self.config, writer, step, self.total_steps, nonfinite)
        with stop_on_signals() as request, progress:
            stop = AgreedStop(request, self.mesh)
            for epoch in range(epochs_done + 1, self.config.epochs + 1):
                last = self.task.epoch_end(epoch)
                while step < last:
                    with progress.input_wait():
                        rows = next(batches)
                        batch = sharding.put_batch(rows, self.mesh)
                    state, metrics = self.train_step(state, batch, resident)
                    step += 1
                    progress.dispatched(step, metrics, rows["index"])
                    if step < last and (signum := stop.signum(step)):
                        progress.drain()
                        nonfinite.check_state(step, state)
                        checkpointer.save(step, state.to_checkpoint(), {"epoch": epoch - 1, **self._data_facts})
                        self._interrupt(signum, step, checkpointer)
                progress.drain()
                nonfinite.check_state(step, state)
                info = self._evaluate(state, epoch, writer, progress)
                checkpointer.save(step, state.to_checkpoint(), info)
                if epoch < self.config.epochs and (signum := stop.signum_now()):
                    self._interrupt(signum, step, checkpointer)

    def _interrupt(self, signum: int, step: int, checkpointer: Checkpointer) -> None:
        checkpointer.wait()
        problem = f"stopped at step {step} of {self.total_steps}, saved; the same command continues there"
        raise Interrupted(signum, problem)

    def _evaluate(self, state: TrainState, epoch: int, writer: MetricWriter, progress: Progress) -> dict[str, Any]:
        """Evaluates raw and averaged weights. Returns the checkpoint's dict `info`, which names the better weights."""
        split, metric = self.config.eval.split, self.config.eval.metric
        names, evaluations = ("raw", "ema") if self.config.ema_decay else ("raw",), {}
        predicted = self.task.predict_split(self.predictor, [state.weights(name) for name in names], split)
        for name, outputs in zip(names, predicted, strict=True):
            evaluations[name] = self.task.evaluate(split, outputs)
            if metric not in evaluations[name]:
                known = ", ".join(evaluations[name])
                raise InputError(f"config.eval.metric={metric!r} is not a metric of this task; known: {known}")
            writer.write(int(state.step), f"{split}_{name}", {"epoch": epoch, **evaluations[name]})
        last = self.config.eval.get("epoch") == "last"  # then no metric chooses anything
        better = names[-1] if last else max(names, key=lambda name: evaluations[name][metric])
        progress.print(
            f"epoch {epoch}/{self.config.epochs}  loss {progress.epoch_loss():.5f}  {split} {metric}: "
            + "  ".join(f"{name} {values[metric]:.4f}" for name, values in evaluations.items())
        )
        chosen = {"metric": float(epoch) if last else evaluations[better][metric], "weights": better}
        return {"epoch": epoch, **chosen, "evaluations": evaluations, **self._data_facts}


def _print(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
