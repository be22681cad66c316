"""Saves checkpoints asynchronously with Orbax, and restores them. Keeps the newest checkpoints and the best one.

No other module of the package uses Orbax.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from aia_jax.training.checkpoint_recovery import UNFINISHED, find_damage, write_digests
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import disk_error
from aia_jax.utils.messages import differences, list_problems


class Checkpointer(contextlib.AbstractContextManager):
    """Saves and restores the checkpoints of one run, in `<workdir>/checkpoints/<step>`. At exit, waits for all saves.

    A checkpoint has the trees `weights` and `progress` (see `TrainState.to_checkpoint`), the dict `info` as JSON, and
    digests of its files (see `checkpoint_recovery`). The best checkpoint is the first one with the largest
    `info["metric"]`. A checkpoint without a metric is never the best.

    Args:
        keep: the number of newest checkpoints to keep, besides the best one.
        shared: whether all processes see the same workdir. If not, process 0 saves, and every process restores from
            its own copy. The saved arrays must then be replicated.
    """

    def __init__(self, workdir: Path, *, keep: int = 2, shared: bool = True):
        self._directory = Path(workdir).resolve() / "checkpoints"
        self._infos: dict[int, dict[str, Any]] = {}
        self._saving = 0
        self._saves = shared or jax.process_index() == 0
        self._shared = shared
        logging.getLogger("absl").addFilter(_is_useful)
        processes = _processes(shared)
        if not shared:  # Orbax creates it only for all processes
            self._directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_NewestAndBest(keep, self._infos),
                enable_async_checkpointing=True,
                create=shared,
                multiprocessing_options=processes,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
            ),
            item_handlers={
                "weights": ocp.StandardCheckpointHandler(multiprocessing_options=processes),
                "progress": ocp.StandardCheckpointHandler(multiprocessing_options=processes),
                "info": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
            },
        )
        for step in self.steps():
            with contextlib.suppress(InputError):  # restoring a damaged checkpoint raises the error
                self._infos[step] = self.info(step)

    def save(self, step: int, trees: dict[str, Any], info: dict[str, Any]) -> None:
        """Starts to write a checkpoint with `trees` and `info`. Returns before the checkpoint is on disk.

        Raises InputError if the disk is full or not writable. The next `save`, `wait` or `__exit__` can raise it too.
        """
        if not self._saves:
            return
        if not self._shared:  # Orbax would wait for the parts that other processes have
            trees = jax.tree.map(np.asarray, trees)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        with self._disk_errors_as_input_errors():
            self._manager.wait_until_finished()
            self._saving, self._infos[step] = step, info
            self._manager.save(step, args=ocp.args.Composite(info=ocp.args.JsonSave(info), **items), force=True)

    def check_undamaged(self, step: int) -> None:
        """Reads all files of a checkpoint. Raises InputError if a file has changed since it was written."""
        if problem := find_damage(self._directory / str(step)):
            raise self._damaged(step, problem)

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints on disk, in order."""
        return sorted(self._manager.all_steps())

    def info(self, step: int) -> dict[str, Any]:
        """Returns the dict `info` of a checkpoint. Raises InputError if `info` cannot be read."""
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore()))
            return dict(restored["info"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(step, f"info: {error}") from error

    def best(self) -> tuple[int, dict[str, Any]]:
        """Returns the step and the `info` of the best checkpoint: the best evaluated epoch, or converted weights.

        Raises InputError if no epoch was evaluated yet, or if the `info` of a checkpoint cannot be read.
        """
        infos = {step: self.info(step) for step in self.steps()}
        step = _best_step(infos, max(infos, default=-1))
        if "weights" not in infos.get(step, {}):
            raise InputError(f"{self._directory} holds no evaluated epoch yet; let aia train finish one")
        return step, infos[step]

    def has_progress(self, step: int) -> bool:
        """Returns whether training can continue from a checkpoint. A converted checkpoint has only weights."""
        return self._manager.item_metadata(step).get("progress") is not None

    def restore_weights(self, step: int, sharding: jax.sharding.Sharding) -> dict[str, Any]:
        """Reads the tree `weights` of a checkpoint. Every array gets the sharding `sharding`."""
        stored = self._manager.item_metadata(step)["weights"].tree
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), stored)
        restored = self._manager.restore(step, args=ocp.args.Composite(weights=ocp.args.StandardRestore(shapes)))
        return restored["weights"]

    def restore(self, step: int, abstract_trees: dict[str, Any]) -> dict[str, Any]:
        """Reads trees of a checkpoint. `abstract_trees` has the same trees, with `jax.ShapeDtypeStruct` leaves.

        Raises InputError if arrays of the checkpoint have other names or shapes, or cannot be read.
        """
        self._check_arrays(step, abstract_trees)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract_trees.items()}
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**items)))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise InputError(
                f"checkpoint {self._directory / str(step)} does not fit this config, or is damaged; "
                f"give the config it was trained with, or another workdir\n  {error}"
            ) from error

    def _check_arrays(self, step: int, abstract_trees: dict[str, Any]) -> None:
        """Raises InputError if the checkpoint's arrays have other names or shapes. Does not read their values."""
        causes = {
            "weights": "does not fit this config; give the config it was trained with, or another workdir",
            "progress": "was saved by another version of aia_jax, whose optimizer state this version cannot continue; "
            "its weights can be used: start a new run, in another workdir, with "
            f"--config.init_from={self._directory.parent}",
        }
        for name, tree in abstract_trees.items():
            leaves = jax.tree.leaves(self._manager.item_metadata(step)[name].tree)
            there = {leaf.name: tuple(leaf.shape) for leaf in leaves}
            paths = jax.tree_util.tree_flatten_with_path(tree)[0]
            here = {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in paths}
            if differing := differences(there, here, "in the model"):
                problem = f"{causes[name]}{list_problems(differing)}"
                raise InputError(f"checkpoint {self._directory / str(step)} {problem}")

    def wait(self) -> None:
        """Waits until every save is on disk."""
        with self._disk_errors_as_input_errors():
            self._manager.wait_until_finished()

    def __exit__(self, exception: type[BaseException] | None, *_rest: object) -> None:
        suppressed = [InputError] if exception else []  # an earlier exception has precedence
        with contextlib.suppress(*suppressed), self._disk_errors_as_input_errors():
            self._manager.close()

    def _damaged(self, step: int, problem: str) -> InputError:
        return InputError(
            f"checkpoint {self._directory / str(step)} is damaged: {problem}; aia train with the same config and "
            "workdir sets it aside and continues without it"
        )

    def _write_digests(self) -> None:
        """Writes the digests of a checkpoint. Orbax calls this after it writes the files, before it commits them."""
        for folder in self._directory.glob(f"{self._saving}{UNFINISHED}*"):
            write_digests(folder)

    @contextlib.contextmanager
    def _disk_errors_as_input_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TensorStore and Orbax raise errors of many types
            reason = disk_error(error)
            if not reason:
                raise
            for folder in self._directory.glob(f"{self._saving}{UNFINISHED}*"):
                shutil.rmtree(folder, ignore_errors=True)
            remaining = f"that of step {self.steps()[-1]} remains" if self.steps() else "there is none before it"
            raise InputError(
                f"{self._directory}: {reason}, the checkpoint of step {self._saving} could not be written; "
                f"{remaining}. Free space there and give the same command again"
            ) from error


def _processes(shared: bool) -> ocp.options.MultiprocessingOptions:
    """Returns Orbax's option for the processes that save and restore together: all, or only this one."""
    if shared:
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(own, active_processes={own}, barrier_sync_key_prefix=f"process{own}")


class _NewestAndBest:
    """Orbax policy: keeps the newest checkpoints and the best. Reads `infos`, as Orbax loses metrics on a restart."""

    def __init__(self, keep: int, infos: dict[int, dict[str, Any]]):
        self._keep, self._infos = keep, infos

    def should_preserve(
        self, checkpoints: Sequence[policies.PolicyCheckpointInfo], *, context: policies.PreservationContext
    ) -> list[bool]:
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        best = _best_step({step: self._infos.get(step, {}) for step in steps}, -1)
        kept = {*steps[-self._keep :], best}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _best_step(infos: dict[int, dict[str, Any]], default: int) -> int:
    """Returns the first step with the largest `info["metric"]`, or `default` if no step has a metric."""
    metrics = {step: info["metric"] for step, info in infos.items() if "metric" in info}
    return max(metrics, key=lambda step: (metrics[step], -step), default=default)


def _is_useful(record: logging.LogRecord) -> bool:
    """Log filter. Drops Orbax's tracebacks, as Orbax also raises their errors, and its warnings about the wait to save.

    `save` waits for the previous checkpoint on purpose, so that at most one copy of the state is in memory.
    """
    waits = record.levelno == logging.WARNING and str(record.msg).startswith("Waiting for previous save")
    return "orbax" not in record.pathname or not (record.exc_info or waits)
