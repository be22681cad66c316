"""Runs whose weights are as drawn, for what only needs some weights."""

import jax
from flax import nnx

from aia_jax.tasks import make_task
from aia_jax.training import sharding
from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.record import write_record
from aia_jax.training.state import split_model
from configs import demo


def write_run(workdir, config):
    """Writes a run of `config` that looks like one whose first epoch was the best."""
    task = make_task(config)
    weights = split_model(task.build_model(nnx.Rngs(config.seed)))[1]
    trees = sharding.put_replicated(jax.device_get(weights), sharding.data_mesh())
    raw = {name: trees[name] for name in ("params", "stats")}
    info = {"epoch": 1, "weights": "raw", "metric": 0.0, **task.describe()}
    with Checkpointer(workdir) as checkpointer:
        checkpointer.save(0, {"weights": {"raw": raw, "ema": raw, "constants": trees["constants"]}}, info)
    write_record(workdir, config)
    return workdir


def annotator_config(**overrides):
    """A very small annotator of the scenes."""
    config = demo.get_config()
    config.update_from_flattened_dict(
        {
            "data.num_train": 40,
            "data.num_test": 16,
            "data.image_size": 32,
            "model.hidden_size": 16,
            "model.feedforward_size": 16,
            **overrides,
        }
    )
    return config
