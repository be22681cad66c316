"""Checkpoints through Orbax: asynchronous, the last k and the best one kept. The only module that knows Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from aia_jax.errors import InputError


class Checkpointer:
    """The checkpoints of one run, in `<workdir>/checkpoints/<step>`.

    `info` is a JSON-able dict; `info["metric"]`, where present, is the number by which the best one is kept (larger is
    better, the first of equals).
    """

    def __init__(self, workdir: Path, *, keep: int = 2):
        self._directory = Path(workdir).resolve() / "checkpoints"
        best = policies.BestN(
            get_metric_fn=lambda metrics: (metrics["metric"], -metrics["step"]),
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                enable_async_checkpointing=True,
            ),
            item_handlers={
                "weights": ocp.StandardCheckpointHandler(),
                "progress": ocp.StandardCheckpointHandler(),
                "info": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, step: int, items: dict[str, Any], info: dict[str, Any]) -> None:
        """Starts writing the trees `weights` and `progress`; returns before they are on disk."""
        metrics = {"metric": info["metric"], "step": step} if "metric" in info else None
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(
            step, args=ocp.args.Composite(info=ocp.args.JsonSave(info), **trees), metrics=metrics, force=True
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, rising."""
        return sorted(self._manager.all_steps())

    def info(self, step: int) -> dict[str, Any]:
        """What was written about the checkpoint of `step`."""
        restored = self._manager.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore()))
        return restored["info"]

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
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for running saves and lets go of the directory."""
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()
