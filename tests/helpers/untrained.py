"""Runs whose weights are as drawn, for what only needs some weights."""

import jax
import numpy as np
from flax import nnx

from aia_jax.tasks import make_task
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, select_weights, split_model
from benchmarks.random_run import write_run
from configs import demo

__all__ = ["annotator_config", "draw_weights", "random_weights", "write_run"]


def random_weights(task, seed):
    """Some weights for the task's model, without compiling what draws the usual ones."""
    shapes = select_weights(abstract_weights(task.build_model, sharding.data_mesh())[1], "raw")
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        drawn = np.ones(leaf.shape) if path[-1].key == "var" else 0.1 * generator.normal(size=leaf.shape)
        return drawn.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def draw_weights(config):
    """Weights that no network starts from: batch norm has scales and statistics of its own everywhere."""
    rng = np.random.default_rng(0)
    ranges = {"scale": (0.4, 0.9), "mean": (-0.2, 0.2), "var": (0.5, 1.5)}

    def draw(path, leaf):
        name, deviation = path[-1].key, (leaf.size / max(leaf.shape[0], leaf.shape[-1])) ** -0.5
        drawn = rng.uniform(*ranges[name], leaf.shape) if name in ranges else rng.normal(0, deviation, leaf.shape)
        return drawn.astype(leaf.dtype)

    shapes = split_model(nnx.eval_shape(lambda: make_task(config).build_model(nnx.Rngs(0))))[1]
    return jax.tree_util.tree_map_with_path(draw, shapes)


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
