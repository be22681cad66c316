"""Loss and gradients of a batch, at once or in microbatches, with the weights gathered where they are split."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aia_jax.training import sharding
from aia_jax.training.model_arrays import Arrays, merge_model
from aia_jax.training.optimizer import hyperparameters
from aia_jax.training.packed_params import Packed, on_mesh, pack, together, unpack
from aia_jax.training.state import TrainState

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


def gather(batch: dict[str, jax.Array], resident: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch with the rows `batch["index"]` of the device-resident arrays added."""
    return {**batch, **{name: rows[batch["index"]] for name, rows in resident.items()}}


def all_finite(*trees: Any) -> jax.Array:
    """Whether no number in the trees is NaN or infinite, a bool scalar."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]).all()


def make_train_step(
    graphdef: nnx.GraphDef,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    seed: int,
    mesh: Mesh,
    accumulate_steps: int = 1,
    state_sharding: Any = None,
    skip_nonfinite: bool = False,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step `(state, batch, resident) -> (state, metrics)`; `state` is donated.

    Args:
        loss_fn: `(model, batch, key) -> (scalar loss, metrics)`; the model is in place to be called in training mode.
        ema_decay: `ema = decay * ema + (1 - decay) * new`, for weights and batch-norm statistics.
        seed: the step's random key is `fold_in(key(seed), step)`, so a resumed run draws the same.
        accumulate_steps: microbatches that the batch is taken in, see `make_gradients`.
        state_sharding: of the state, or of each of its leaves; on every device if None.
        skip_nonfinite: whether a step that is not finite leaves all but `state.step` as it was, schedules included.

    Returns:
        The step; its metrics are `loss`, those of `loss_fn`, `learning_rate`, `beta1`, and `finite`: whether loss and
        gradients are. Of the gradients all are looked at with `skip_nonfinite`; otherwise those of biases and norms,
        which every layer has: a NaN on its way back passes them, and they take no time.
    """
    gradients = make_gradients(graphdef, loss_fn, mesh, accumulate_steps)

    def step(state: TrainState, batch: dict[str, jax.Array], resident: dict[str, jax.Array]):
        batch = gather(batch, resident)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, stats, metrics, grads = gradients(state.params, state.stats, state.constants, batch, key)
        finite = all_finite(loss, grads if skip_nonfinite else grads.vectors)
        with jax.named_scope("optimizer"):
            # Read together, too: XLA would copy each scalar that is both used and replaced.
            updates, opt_state = optimizer.update(grads, together(state.opt_state), state.params)
            params = optax.apply_updates(state.params, updates)
        with jax.named_scope("ema"):
            ema = jax.tree.map(
                lambda average, new: ema_decay * average + (1 - ema_decay) * new,
                state.ema,
                {"params": params, "stats": stats},
            )
        new = state.replace(params=params, stats=stats, opt_state=opt_state, ema=ema)
        if skip_nonfinite:
            new = jax.tree.map(functools.partial(jnp.where, finite), new, state)
        metrics = {"loss": loss, **metrics, **hyperparameters(opt_state), "finite": finite}
        return together((new.replace(step=state.step + 1), metrics))

    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    placed = state_sharding or whole
    return jax.jit(step, in_shardings=(placed, rows, whole), out_shardings=(placed, whole), donate_argnums=0)


def make_predict_step(
    graphdef: nnx.GraphDef,
    predict_fn: Callable[..., Arrays],
    mesh: Mesh,
    weights_sharding: Any = None,
    *,
    shared: bool = False,
) -> Callable[..., Arrays]:
    """The jitted `(weights, batch) -> outputs`; every device holds all rows of the outputs.

    Args:
        predict_fn: `(model, batch) -> outputs`, row-wise.
        weights_sharding: of the weights, or of each of their leaves; on every device if None.
        shared: whether the step and `predict_fn` take a third argument, arrays that all rows need whole.
    """

    def step(weights: Arrays, batch: dict[str, jax.Array], *shared: Arrays) -> Arrays:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return predict_fn(merge_model(graphdef, whole_weights(weights, mesh)), batch, *shared)

    whole = sharding.replicated(mesh)
    placed = (weights_sharding or whole, sharding.batch_sharding(mesh), *[whole] * shared)
    return jax.jit(step, in_shardings=placed, out_shardings=whole)
