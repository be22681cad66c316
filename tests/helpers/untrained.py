"""Small configs and random weights, for tests that need any model."""

import jax
import numpy as np
from flax import nnx

from aia_jax.configs import demo
from aia_jax.training.model_arrays import split_model
from benchmarks.random_run import write_run

__all__ = ["annotator_config", "random_weights", "write_config", "write_run"]


def write_config(path, config):
    """Writes a config file whose `get_config` returns the demo's config with the values of `config`."""
    path.write_text(
        "from aia_jax.configs.demo import get_config as demo\n\n"
        f"def get_config():\n    config = demo()\n    config.update({config.to_dict()!r})\n    return config\n"
    )
    return path


def random_weights(task, seed=0):
    """Random weights for the task's model, without compilation; batch norm has its own scales and statistics."""
    rng = np.random.default_rng(seed)
    ranges = {"scale": (0.4, 0.9), "mean": (-0.2, 0.2), "var": (0.5, 1.5)}

    def fill(path, leaf):
        name, deviation = path[-1].key, (leaf.size / max(leaf.shape[0], leaf.shape[-1])) ** -0.5
        values = rng.uniform(*ranges[name], leaf.shape) if name in ranges else rng.normal(0, deviation, leaf.shape)
        return values.astype(leaf.dtype)

    shapes = split_model(nnx.eval_shape(lambda: task.build_model(nnx.Rngs(0))))[1]
    return jax.tree_util.tree_map_with_path(fill, shapes)


def annotator_config(**overrides):
    """The config of a very small annotator of the scenes."""
    config = demo.get_config()
    sizes = {"data.num_train": 40, "data.num_test": 16, "data.image_size": 32}
    sizes |= {"model.hidden_size": 16, "model.feedforward_size": 16}
    config.update_from_flattened_dict({**sizes, **overrides})
    return config
