"""Splits a model into its structure and plain dicts of arrays: `{"params", "stats", "constants"}`."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from aia_jax.training.sharding import shard_shapes

Arrays = dict[str, Any]


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Arrays]:
    """Returns the model's structure and the model's arrays, `{"params", "stats", "constants"}`."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return graphdef, dict(zip(("params", "stats", "constants"), map(nnx.to_pure_dict, states), strict=True))


def merge_model(graphdef: nnx.GraphDef, weights: Arrays) -> nnx.Module:
    """Builds a model from the two values that `split_model` returns."""
    return nnx.merge(graphdef, weights["params"], weights["stats"], weights["constants"])


def abstract_weights(build: Callable[[nnx.Rngs], nnx.Module], mesh: Mesh) -> tuple[nnx.GraphDef, Arrays]:
    """Returns a model's structure, and a checkpoint's tree `weights` with shapes and shardings instead of values."""
    graphdef, arrays = split_model(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    arrays = shard_shapes(arrays, mesh)
    constants = arrays.pop("constants")
    return graphdef, {"raw": arrays, "ema": arrays, "constants": constants}


def select_weights(weights: Arrays, name: str) -> Arrays:
    """Returns the weights "raw" or "ema" of a checkpoint, as `{"params", "stats", "constants"}`."""
    return {**weights[name], "constants": weights["constants"]}


def flat_arrays(weights: Arrays) -> dict[str, Any]:
    """Returns `{path: array}`. Paths, such as "head.bias", do not begin with "params", "stats" or "constants"."""
    paths = jax.tree_util.tree_flatten_with_path(weights)[0]
    return {_model_path(path): leaf for path, leaf in paths}


def replace_arrays(weights: Arrays, arrays: dict[str, Any]) -> Arrays:
    """Returns a copy of `weights` with new values for the paths in `arrays`, in the dtypes of `weights`.

    For the paths, see `flat_arrays`.
    """

    def replace(path: tuple[jax.tree_util.DictKey, ...], leaf: Any) -> Any:
        value = arrays.get(_model_path(path), leaf)
        return value if value.dtype == leaf.dtype else value.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(replace, weights)


def _model_path(path: tuple[jax.tree_util.DictKey, ...]) -> str:
    return jax.tree_util.keystr(path[1:], simple=True, separator=".")
