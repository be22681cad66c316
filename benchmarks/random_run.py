"""Writes untrained runs, for benchmarks that need any weights."""

from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.tasks.registry import make_task
from aia_jax.training import sharding
from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.model_arrays import Arrays, split_model
from aia_jax.training.runs import write_record


def write_run(workdir: Path, config: ConfigDict, weights: Arrays | None = None) -> Path:
    """Writes a run of `config` as after one epoch.

    Args:
        weights: `{"params", "stats", "constants"}`; None: random weights.

    Returns:
        `workdir`.
    """
    task = make_task(config)
    weights = weights or split_model(task.build_model(nnx.Rngs(config.seed)))[1]
    trees = sharding.put_replicated(jax.device_get(weights), sharding.data_mesh())
    raw = {name: trees[name] for name in ("params", "stats")}
    info = {"epoch": 1, "weights": "raw", "metric": 0.0, **task.describe()}
    with Checkpointer(workdir) as checkpointer:
        checkpointer.save(0, {"weights": {"raw": raw, "ema": raw, "constants": trees["constants"]}}, info)
    write_record(workdir, config)
    return workdir
