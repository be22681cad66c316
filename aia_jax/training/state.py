"""The training state: plain pytrees of arrays."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from aia_jax.training.model_arrays import Arrays, select_weights, split_model


class TrainState(struct.PyTreeNode):
    """Holds all arrays that a training step reads and replaces.

    Attributes:
        step: int32 scalar, the number of optimizer steps done.
        params: trained weights.
        stats: running statistics of batch norm.
        constants: arrays that are never trained, such as a frozen label embedding.
        opt_state: state of the optimizer.
        ema: `{"params", "stats"}`, exponential moving averages of `params` and `stats`.
    """

    step: jax.Array
    params: Arrays
    stats: Arrays
    constants: Arrays
    opt_state: optax.OptState
    ema: dict[str, Arrays]

    @classmethod
    def create(cls, weights: Arrays, optimizer: optax.GradientTransformation) -> "TrainState":
        """Returns the state before the first step, from weights `{"params", "stats", "constants"}`."""
        opt_state = optimizer.init(weights["params"])
        return cls(step=jnp.zeros((), jnp.int32), **weights, opt_state=opt_state, ema=initial_ema(weights))

    def weights(self, name: str) -> Arrays:
        """Returns the weights "raw" (trained) or "ema" (averaged), as `{"params", "stats", "constants"}`."""
        return select_weights(self.to_checkpoint()["weights"], name)

    def to_checkpoint(self) -> dict[str, Arrays]:
        """Returns the trees of a checkpoint: `weights`, and `progress`, which only training needs."""
        raw = {"params": self.params, "stats": self.stats}
        return {
            "weights": {"raw": raw, "ema": self.ema, "constants": self.constants},
            "progress": {"step": self.step, "opt_state": self.opt_state},
        }

    @classmethod
    def from_checkpoint(cls, trees: dict[str, Arrays]) -> "TrainState":
        """Builds the state from the trees that `to_checkpoint` returns."""
        weights = trees["weights"]
        return cls(**trees["progress"], **weights["raw"], ema=weights["ema"], constants=weights["constants"])


def initial_state(
    build: Callable[[nnx.Rngs], nnx.Module], optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Returns the state before the first step. To place the arrays, call it in `jax.jit` with `out_shardings`."""
    return TrainState.create(split_model(build(nnx.Rngs(jax.random.key(seed))))[1], optimizer)


def initial_ema(weights: Arrays) -> Arrays:
    """Returns the first moving averages. They are copies, because a donated state must not use a buffer twice."""
    return jax.tree.map(jnp.copy, {"params": weights["params"], "stats": weights["stats"]})
