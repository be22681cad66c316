"""The training step (forward pass, loss, gradients, optimizer update, EMA) and the prediction step."""

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
from aia_jax.training.state import TrainState

LossFn = Callable[[nnx.Module, Arrays, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
Gradients = Callable[[Arrays, Arrays, Arrays, Arrays, jax.Array], tuple[jax.Array, Arrays, Arrays, Arrays]]


def make_gradients(graphdef: nnx.GraphDef, loss_fn: LossFn, mesh: Mesh) -> Gradients:
    """Returns the function `(params, stats, constants, batch, key) -> (loss, stats, metrics, gradients)`.

    Call the returned function inside `jax.jit`. `TrainState` describes `params`, `stats` and `constants`. `Task.loss`
    describes `loss_fn`. The gradients have the same sharding as the arrays in `params`.
    """

    def forward(params: Arrays, stats: Arrays, constants: Arrays, batch: Arrays, key: jax.Array):
        model = nnx.merge(graphdef, *sharding.gather((params, stats, constants), mesh))
        loss, metrics = loss_fn(model, batch, key)
        return loss, (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), metrics)

    value_and_grad = jax.value_and_grad(forward, has_aux=True)

    def gradients(params: Arrays, stats: Arrays, constants: Arrays, batch: Arrays, key: jax.Array):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for layers that constrain activation sharding
            (loss, (stats, metrics)), grads = value_and_grad(params, stats, constants, batch, key)
        if mesh.shape["fsdp"] > 1:  # reduce-scatter: each device keeps the gradients of its own params only
            placed = jax.tree.map(lambda grad: sharding.state_sharding(grad.shape, mesh), grads)
            grads = jax.lax.with_sharding_constraint(grads, placed)
        return loss, stats, metrics, grads

    return gradients


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
) -> Callable[[TrainState, Arrays, Arrays], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the jitted step `(state, batch, resident) -> (state, metrics)`, which donates `state`.

    `resident` has the arrays of `Task.resident_arrays`. The metrics are `loss`, the metrics of `loss_fn`,
    `learning_rate`, `beta1` and `finite`: whether the loss and all gradients are finite.

    Args:
        ema_decay: decay of the averages of weights and batch-norm statistics, `decay * average + (1 - decay) * new`.
        seed: the random key of a step is `fold_in(key(seed), step)`, so a continued run uses the same keys.
        accumulate_steps: the number of microbatches per batch; see `accumulate`.
        state_sharding: one sharding for all arrays of the state, or a tree with one for each. None replicates all.
        skip_nonfinite: if True, a step with a NaN or infinite loss or gradient changes only `state.step`.
    """
    gradients = accumulate(make_gradients(graphdef, loss_fn, mesh), accumulate_steps, mesh)

    def step(state: TrainState, batch: Arrays, resident: Arrays) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = gather_rows(batch, resident)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, stats, metrics, grads = gradients(state.params, state.stats, state.constants, batch, key)
        finite = all_finite(loss, grads)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        with jax.named_scope("ema"):
            new = {"params": params, "stats": stats}
            ema = jax.tree.map(lambda average, x: ema_decay * average + (1 - ema_decay) * x, state.ema, new)
        # Every scalar in `metrics` is logged. To log the norm of the gradients, add `optax.tree.norm(grads)`.
        metrics = {"loss": loss, **metrics, **hyperparameters(opt_state), "finite": finite}
        new_state = state.replace(params=params, stats=stats, opt_state=opt_state, ema=ema)
        if skip_nonfinite:
            new_state = jax.tree.map(functools.partial(jnp.where, finite), new_state, state)
        return new_state.replace(step=state.step + 1), metrics

    replicated, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    placed = state_sharding or replicated
    return jax.jit(step, in_shardings=(placed, rows, replicated), out_shardings=(placed, replicated), donate_argnums=0)


def accumulate(gradients: Gradients, steps: int, mesh: Mesh) -> Gradients:
    """Returns a function that calls `gradients` for one microbatch after the other. This needs less memory.

    Loss, metrics and gradients are means over the microbatches. Batch norm normalises each microbatch with the
    microbatch's own statistics, and updates the running statistics once per microbatch. On GPUs, the gradients are
    summed over the devices once, after the last microbatch.

    Args:
        steps: the number k of microbatches. Microbatch j has the rows j, k + j, 2k + j, ... of the batch, so that no
            row moves to another device. The random key of microbatch j is `fold_in(key, j)`.
    """
    if steps == 1:
        return gradients

    def microbatches(rows: jax.Array) -> jax.Array:
        """Splits the B rows of a batch, `[B, ...]`, into k microbatches, `[k, B / k, ...]`."""
        parts = rows.reshape(-1, steps, *rows.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, PartitionSpec(None, mesh.axis_names)))

    def accumulated(params: Arrays, stats: Arrays, constants: Arrays, batch: Arrays, key: jax.Array):
        def body(carry: tuple[Arrays, Arrays], xs: tuple[jax.Array, Arrays]):
            stats, total = carry
            index, rows = xs
            loss, stats, metrics, grads = gradients(params, stats, constants, rows, jax.random.fold_in(key, index))
            return (stats, jax.tree.map(jnp.add, total, grads)), (loss, metrics)

        start = stats, jax.tree.map(jnp.zeros_like, params)
        (stats, total), (losses, metrics) = jax.lax.scan(
            body, start, (jnp.arange(steps), jax.tree.map(microbatches, batch))
        )
        grads = jax.tree.map(lambda grad: grad / steps, total)
        return losses.mean(), stats, jax.tree.map(lambda values: values.mean(0), metrics), grads

    return accumulated


def make_predict_step(
    graphdef: nnx.GraphDef,
    predict_fn: Callable[..., Arrays],
    mesh: Mesh,
    weights_sharding: Any = None,
    *,
    shared: bool = False,
) -> Callable[..., Arrays]:
    """Returns the jitted step `(weights, batch) -> outputs`. Every device holds all rows of the outputs.

    Args:
        predict_fn: `(model, batch) -> outputs`. Each output row depends only on its own batch row.
        weights_sharding: one sharding for all weights, or a tree with one for each. None replicates all weights.
        shared: if True, the step and `predict_fn` have a third argument: a dict of arrays that all rows use.
    """

    def step(weights: Arrays, batch: Arrays, *shared: Arrays) -> Arrays:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return predict_fn(merge_model(graphdef, sharding.gather(weights, mesh)), batch, *shared)

    replicated = sharding.replicated(mesh)
    placed = (weights_sharding or replicated, sharding.batch_sharding(mesh), *[replicated] * shared)
    return jax.jit(step, in_shardings=placed, out_shardings=replicated)


def gather_rows(batch: Arrays, resident: Arrays) -> Arrays:
    """Adds to `batch` the rows `batch["index"]` of each array in `resident`."""
    return {**batch, **{name: rows[batch["index"]] for name, rows in resident.items()}}


def all_finite(*trees: Any) -> jax.Array:
    """Returns a bool scalar that is True if all numbers in the trees are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]).all()
