"""A model as its structure and plain dicts of arrays: `{"params", "stats", "constants"}`."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from aia_jax.training.sharding import replicated, shard_shapes

Arrays = dict[str, Any]


def select_weights(weights: Arrays, name: str) -> Arrays:
    """Of a checkpoint's weights those called `name`, "raw" or "ema", as `{"params", "stats", "constants"}`."""
    return {**weights[name], "constants": weights["constants"]}


def flat_arrays(weights: Arrays) -> dict[str, Any]:
    """Leaves of inference weights by their path in the model, such as "head.bias", whichever collection they are in."""
    paths = jax.tree_util.tree_flatten_with_path(weights)[0]
    return {_model_path(path): leaf for path, leaf in paths}


def replace_arrays(weights: Arrays, arrays: dict[str, Any]) -> Arrays:
    """Inference weights with the leaves of some paths replaced; see `flat_arrays`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: arrays.get(_model_path(path), leaf), weights)


def _model_path(path: tuple[jax.tree_util.DictKey, ...]) -> str:
    return ".".join(str(part.key) for part in path[1:])  # without the collection


def abstract_weights(build: Callable[[nnx.Rngs], nnx.Module], mesh: Mesh) -> tuple[nnx.GraphDef, Arrays]:
    """A model's structure, and a checkpoint's weights for it as shapes on `mesh`; nothing is computed."""
    graphdef, arrays = split_model(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    arrays = shard_shapes(arrays, mesh)
    constants = arrays.pop("constants")
    return graphdef, {"raw": arrays, "ema": arrays, "constants": constants}


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Arrays]:
    """The model's structure and its `{"params", "stats", "constants"}` as pure dicts."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return graphdef, dict(zip(("params", "stats", "constants"), map(nnx.to_pure_dict, states), strict=True))


def merge_model(graphdef: nnx.GraphDef, weights: Arrays) -> nnx.Module:
    """The inverse of `split_model`."""
    return nnx.merge(graphdef, weights["params"], weights["stats"], weights["constants"])


def change_model(
    graphdef: nnx.GraphDef, weights: Arrays, change: Callable[[nnx.Module], None], mesh: Mesh
) -> tuple[nnx.GraphDef, Arrays]:
    """Structure and inference weights of the model that `change` makes of this one, in place; on every device."""

    def changed(weights: Arrays) -> tuple[nnx.GraphDef, Arrays]:
        model = merge_model(graphdef, weights)
        change(model)
        return split_model(model)

    return jax.jit(changed, out_shardings=replicated(mesh))(weights)
