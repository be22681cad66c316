"""Checkpoints through Orbax: asynchronous, the last k and the best one kept. The only module that knows Orbax."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from aia_jax.training.checkpoint_recovery import UNFINISHED, damage, write_digests
from aia_jax.utils.errors import InputError


class Checkpointer:
    """The checkpoints of one run, in `<workdir>/checkpoints/<step>`.

    `info` is a JSON-able dict; `info["metric"]`, where present, is the number by which the best one is kept (larger is
    better, the first of equals). Each checkpoint holds digests of its files, see `recovery.py`.
    """

    def __init__(self, workdir: Path, *, keep: int = 2):
        self._directory = Path(workdir).resolve() / "checkpoints"
        self._metrics: dict[int, float] = {}
        self._saving = 0
        logging.getLogger("absl").addFilter(_is_told_once)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_NewestAndBest(keep, self._metrics),
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_handlers={
                "weights": ocp.StandardCheckpointHandler(),
                "progress": ocp.StandardCheckpointHandler(),
                "info": ocp.JsonCheckpointHandler(),
            },
        )
        for step in self.steps():
            with contextlib.suppress(InputError):  # of a damaged one, which whoever restores it is told of
                self._note_metric(step, self.info(step))

    def save(self, step: int, items: dict[str, Any], info: dict[str, Any]) -> None:
        """Starts writing the trees `weights` and `progress`; returns before they are on disk.

        Raises:
            InputError: the disk is full, or cannot be written. So do `wait` and `close`, of the save before.
        """
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with self._speaking_errors():
            self._manager.wait_until_finished()
            self._saving = step
            self._note_metric(step, info)
            self._manager.save(step, args=ocp.args.Composite(info=ocp.args.JsonSave(info), **trees), force=True)

    def check_undamaged(self, step: int) -> None:
        """Raises InputError if a file of the checkpoint of `step` is not as it was written; reads all of them."""
        if problem := damage(self._directory / str(step)):
            raise self._damaged(step, problem)

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, rising."""
        return sorted(self._manager.all_steps())

    def info(self, step: int) -> dict[str, Any]:
        """What was written about the checkpoint of `step`.

        Raises:
            InputError: it cannot be read.
        """
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore()))
            return dict(restored["info"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(step, f"info: {error}") from error

    def holds_progress(self, step: int) -> bool:
        """Whether the checkpoint of `step` came from training, and not from a conversion."""
        return self._manager.item_metadata(step).get("progress") is not None

    def restore_weights(self, step: int, sharding: jax.sharding.Sharding) -> dict[str, Any]:
        """The tree `weights` of the checkpoint of `step`, whatever model it is of."""
        stored = self._manager.item_metadata(step)["weights"].tree
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), stored)
        restored = self._manager.restore(step, args=ocp.args.Composite(weights=ocp.args.StandardRestore(shapes)))
        return restored["weights"]

    def restore(self, step: int, abstract_items: dict[str, Any]) -> dict[str, Any]:
        """The named trees, `weights` among them, of the checkpoint of `step`, in the given shapes and shardings.

        Raises:
            InputError: if the checkpoint does not hold them.
        """
        self._check_weights(step, abstract_items["weights"])
        trees = {name: ocp.args.StandardRestore(tree) for name, tree in abstract_items.items()}
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**trees)))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise InputError(
                f"checkpoint {self._directory / str(step)} does not fit this config, or is damaged; "
                f"give the config it was trained with, or another workdir\n  {error}"
            ) from error

    def _check_weights(self, step: int, abstract_weights: Any) -> None:
        """Raises InputError, naming the arrays, if the checkpoint holds others than the model; reads no array."""
        stored = self._manager.item_metadata(step)["weights"]
        there = {leaf.name: tuple(leaf.shape) for leaf in jax.tree.leaves(stored.tree)}
        paths = jax.tree_util.tree_flatten_with_path(abstract_weights)[0]
        here = {".".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in paths}
        lines = [
            f"  {name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} in the model"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if lines:
            more = [f"  ... and {len(lines) - 10} more"] if len(lines) > 10 else []
            raise InputError(
                "\n".join(
                    [
                        f"checkpoint {self._directory / str(step)} does not fit this config; "
                        "give the config it was trained with, or another workdir",
                        *lines[:10],
                        *more,
                    ]
                )
            )

    def wait(self) -> None:
        """Returns when every save is on disk."""
        with self._speaking_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for running saves and lets go of the directory."""
        with self._speaking_errors():
            self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, exception: type[BaseException] | None, *_rest: Any) -> None:
        with contextlib.suppress(*[InputError] if exception else []):  # what came first is what a user should read
            self.close()

    def _damaged(self, step: int, problem: str) -> InputError:
        return InputError(
            f"checkpoint {self._directory / str(step)} is damaged: {problem}; train.py with the same config and "
            "workdir sets it aside and goes on without it"
        )

    def _note_metric(self, step: int, info: dict[str, Any]) -> None:
        if "metric" in info:
            self._metrics[step] = info["metric"]

    def _seal(self) -> None:
        """Called when all files of a checkpoint are there, before it counts as one."""
        for folder in self._directory.glob(f"{self._saving}{UNFINISHED}*"):
            write_digests(folder)

    @contextlib.contextmanager
    def _speaking_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TensorStore's and Orbax's are of many types
            reason = _reason(error)
            if not reason:
                raise
            for folder in self._directory.glob(f"{self._saving}{UNFINISHED}*"):
                shutil.rmtree(folder, ignore_errors=True)
            stands = f"that of step {self.steps()[-1]} stands" if self.steps() else "there is none before it"
            raise InputError(
                f"{self._directory}: {reason}, the checkpoint of step {self._saving} could not be written; {stands}. "
                "Make room there and give the same command again"
            ) from error


class _NewestAndBest:
    """What stays on disk; metrics are our own, for Orbax forgets them when a run is resumed."""

    def __init__(self, keep: int, metrics: dict[int, float]):
        self._keep, self._metrics = keep, metrics

    def should_preserve(
        self, checkpoints: Sequence[policies.PolicyCheckpointInfo], *, context: policies.PreservationContext
    ) -> list[bool]:
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        measured = [step for step in steps if step in self._metrics]
        best = max(measured, key=lambda step: (self._metrics[step], -step), default=None)
        kept = {*steps[-self._keep :], best}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _reason(error: Exception) -> str:
    """Why a save failed, if it is the disk's fault."""
    number = error.errno if isinstance(error, OSError) else None
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        if number == code or os.strerror(code) in str(error):
            return os.strerror(code)
    return ""


def _is_told_once(record: logging.LogRecord) -> bool:
    """Orbax logs, with tracebacks, what its threads fail with before it raises it."""
    return not (record.exc_info and "orbax" in record.pathname)
