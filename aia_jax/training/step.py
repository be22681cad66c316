"""Loss and gradients of a batch, at once or in microbatches, with the weights gathered where they are split."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aia_jax.training import sharding
from aia_jax.training.packed_params import Arrays, Packed, on_mesh, pack, unpack

LossFn = Callable[[nnx.Module, dict[str, jax.Array], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
Gradients = Callable[..., tuple[jax.Array, Packed, dict[str, jax.Array], Packed]]


def make_gradients(graphdef: nnx.GraphDef, loss_fn: LossFn, mesh: Mesh, accumulate_steps: int = 1) -> Gradients:
    """The function `(params, stats, constants, batch, key) -> (loss, stats, metrics, gradients)`, for use under jit.

    Args:
        loss_fn: `(model, batch, key) -> (scalar loss, metrics)`; the model is in place to be called in training mode.
        accumulate_steps: k; the batch `[B, ...]` is taken in k microbatches of B / k rows, microbatch j being the rows
            j, k + j, 2k + j, ..., which no device has to fetch from another. Loss, metrics and gradients are means over
            them. Batch norm normalises each microbatch by its own statistics and moves its running averages k times,
            by one microbatch after the other. Microbatch j draws with `fold_in(key, j)`.
            Compiled for GPUs, the gradients are summed over the devices once, after the last microbatch.

    Returns:
        Params, statistics and gradients are packed; the gradients are split over the devices as the params are.
    """

    def objective(params: Packed, stats: Packed, constants: Arrays, batch: dict[str, jax.Array], key: jax.Array):
        # Each weight by itself: left to XLA, the vectors in `params` would be split and moved about.
        model = nnx.merge(graphdef, *whole_weights((unpack(params), unpack(stats)), mesh), constants)
        loss, metrics = loss_fn(model, batch, key)
        stats = whole_weights(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), mesh)
        return loss, (pack(stats), metrics)

    def of_one(params: Packed, stats: Packed, constants: Arrays, batch: dict[str, jax.Array], key: jax.Array):
        whole = whole_weights((params, stats, constants), mesh)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            (loss, (stats, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(*whole, batch, key)
        return loss, stats, metrics, _split(grads, mesh)

    def of_many(params: Packed, stats: Packed, constants: Arrays, batch: dict[str, jax.Array], key: jax.Array):
        def body(carry: tuple[Packed, Packed], xs: tuple[jax.Array, dict[str, jax.Array]]):
            stats, total = carry
            index, rows = xs
            loss, stats, metrics, grads = of_one(params, stats, constants, rows, jax.random.fold_in(key, index))
            return (stats, jax.tree.map(jnp.add, total, grads)), (loss, metrics)

        start = stats, jax.tree.map(jnp.zeros_like, params)
        steps = jnp.arange(accumulate_steps), {name: microbatches(rows) for name, rows in batch.items()}
        (stats, total), (losses, metrics) = jax.lax.scan(body, start, steps)
        grads = jax.tree.map(lambda grad: grad / accumulate_steps, total)
        return losses.mean(), stats, jax.tree.map(lambda values: values.mean(0), metrics), grads

    def microbatches(rows: jax.Array) -> jax.Array:
        """`[B, ...]` to `[k, B / k, ...]`, the rows of a device staying there."""
        parts = rows.reshape(-1, accumulate_steps, *rows.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, PartitionSpec(None, mesh.axis_names)))

    return of_one if accumulate_steps == 1 else of_many


def whole_weights(weights: Any, mesh: Mesh) -> Any:
    """Under jit: the weights gathered from the devices that they are split over, where they are."""
    if mesh.shape["fsdp"] == 1:
        return weights
    return jax.lax.with_sharding_constraint(weights, sharding.replicated(mesh))


def _split(arrays: Arrays, mesh: Mesh) -> Arrays:
    """Each device keeps the part of the sum over the batch that belongs to its part of the params."""
    if mesh.shape["fsdp"] == 1:
        return arrays
    return jax.lax.with_sharding_constraint(arrays, sharding.shardings(on_mesh(jax.eval_shape(lambda: arrays), mesh)))
