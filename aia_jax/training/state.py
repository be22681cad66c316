"""What a run carries from step to step, and the step itself: a pure function over dicts of arrays."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.sharding import Mesh

from aia_jax.training.optimizer import hyperparameters
from aia_jax.training.packed_params import Packed, loosened, on_mesh, pack, tightened, together, unpack
from aia_jax.training.sharding import batch_sharding, replicated
from aia_jax.training.step import Arrays, LossFn, make_gradients, whole_weights


class TrainState(struct.PyTreeNode):
    """The state of a run.

    Attributes:
        step: int32 scalar, optimiser steps done.
        params: trained weights, packed; so are the optimiser's moments of them.
        stats: batch-norm running statistics, packed.
        constants: arrays that are never trained (a frozen label embedding).
        opt_state: optimiser state.
        ema: `{"params", "stats"}`, exponential moving averages of both.
    """

    step: jax.Array
    params: Packed
    stats: Packed
    constants: Arrays
    opt_state: optax.OptState
    ema: dict[str, Packed]

    @classmethod
    def create(cls, weights: Arrays, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step, from `{"params", "stats", "constants"}`."""
        params, stats = pack(weights["params"]), pack(weights["stats"])
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            stats=stats,
            constants=weights["constants"],
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, {"params": params, "stats": stats}),
        )

    def weights(self, name: str) -> Arrays:
        """The inference weights `name`: "raw" or "ema", as `{"params", "stats", "constants"}`."""
        return select_weights(self.items()["weights"], name)

    def items(self) -> dict[str, Arrays]:
        """What a checkpoint holds: all weights, apart from what only training needs."""
        raw = {"params": unpack(self.params), "stats": unpack(self.stats)}
        ema = {name: unpack(packed) for name, packed in self.ema.items()}
        return {
            "weights": {"raw": raw, "ema": ema, "constants": self.constants},
            "progress": {"step": self.step, "opt_state": loosened(self.opt_state)},
        }

    def with_weights(self, weights: Arrays) -> "TrainState":
        """This state with other weights, `{"params", "stats", "constants"}`; the averages start from them too."""
        packed = {name: pack(weights[name]) for name in ("params", "stats")}
        return self.replace(**packed, constants=weights["constants"], ema=jax.tree.map(jnp.copy, packed))

    @classmethod
    def from_items(cls, items: dict[str, Arrays]) -> "TrainState":
        """The inverse of `items`."""
        weights = items["weights"]
        raw, ema = ({name: pack(tree) for name, tree in weights[kind].items()} for kind in ("raw", "ema"))
        progress = {name: tightened(tree, raw["params"]) for name, tree in items["progress"].items()}
        return cls(**progress, **raw, ema=ema, constants=weights["constants"])


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
    arrays = on_mesh(arrays, mesh)
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


def initial_state(
    build: Callable[[nnx.Rngs], nnx.Module], optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before the first step; to be called under jit, which puts it where its shardings say."""
    return TrainState.create(split_model(build(nnx.Rngs(jax.random.key(seed))))[1], optimizer)


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

    whole, rows = replicated(mesh), batch_sharding(mesh)
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

    whole = replicated(mesh)
    placed = (weights_sharding or whole, batch_sharding(mesh), *[whole] * shared)
    return jax.jit(step, in_shardings=placed, out_shardings=whole)
