"""What a run carries from step to step, and the step itself: a pure function over dicts of arrays."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from aia_jax.training.model_arrays import Arrays, select_weights, split_model
from aia_jax.training.packed_params import Packed, loosened, pack, tightened, unpack


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


def initial_state(
    build: Callable[[nnx.Rngs], nnx.Module], optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before the first step; to be called under jit, which puts it where its shardings say."""
    return TrainState.create(split_model(build(nnx.Rngs(jax.random.key(seed))))[1], optimizer)
