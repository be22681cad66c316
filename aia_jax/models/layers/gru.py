"""A bidirectional GRU for padded sequences, with the formulas of PyTorch."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from aia_jax.models.layers.common import uniform


class Direction(nnx.Module):
    """The weights of one direction of a GRU. The gates are in PyTorch's order: reset, update, candidate.

    Attributes:
        input_kernel, hidden_kernel: `[F, 3 D]` and `[D, 3 D]`, for input size F and state size D.
        input_bias, hidden_bias: `[3 D]`. The reset gate also multiplies the candidate's hidden bias.
    """

    def __init__(self, num_features: int, hidden_size: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        init = uniform(1 / math.sqrt(hidden_size))
        gates = 3 * hidden_size
        self.input_kernel = nnx.Param(init(rngs.params(), (num_features, gates), param_dtype))
        self.hidden_kernel = nnx.Param(init(rngs.params(), (hidden_size, gates), param_dtype))
        self.input_bias = nnx.Param(init(rngs.params(), (gates,), param_dtype))
        self.hidden_bias = nnx.Param(init(rngs.params(), (gates,), param_dtype))


class BidirectionalGRU(nnx.Module):
    """A GRU layer that computes both directions in one scan. The states equal those of `torch.nn.GRU`.

    Args:
        num_features, hidden_size: F, size of the inputs, and D, size of the states.
        dtype: dtype of the matrix products. The state is float32.
    """

    def __init__(self, num_features: int, hidden_size: int, *, dtype: DTypeLike, **options):
        self.dtype = dtype
        self.forward = Direction(num_features, hidden_size, **options)
        self.backward = Direction(num_features, hidden_size, **options)

    def __call__(self, x: Array, lengths: Array) -> Array:
        """Computes the mean of the states of both directions.

        Args:
            x: `[B, L, F]`. Values after the end of a sequence are ignored.
            lengths: int `[B]`, lengths of the sequences, from 1 to L.

        Returns:
            float32 `[B, L, D]`. Values after the end of a sequence are undefined.
        """
        input_kernel, hidden_kernel = (
            self._both(name).astype(self.dtype) for name in ("input_kernel", "hidden_kernel")
        )
        input_bias, hidden_bias = self._both("input_bias")[:, None, None], self._both("hidden_bias")[:, None]
        # Reverses only the valid rows, so that the padding stays at the end.
        x = jnp.stack([x, reverse(x, lengths)]).astype(self.dtype)
        gates = jnp.einsum("nblf,nfg->nblg", x, input_kernel, preferred_element_type=jnp.float32) + input_bias

        def step(state: Array, gates: Array) -> tuple[Array, Array]:
            recurrent = jnp.einsum(
                "nbd,ndg->nbg", state.astype(self.dtype), hidden_kernel, preferred_element_type=jnp.float32
            )
            reset, update, candidate = jnp.split(gates, 3, axis=-1)
            recurrent_reset, recurrent_update, recurrent_candidate = jnp.split(recurrent + hidden_bias, 3, axis=-1)
            update = jax.nn.sigmoid(update + recurrent_update)
            candidate = jnp.tanh(candidate + jax.nn.sigmoid(reset + recurrent_reset) * recurrent_candidate)
            state = (1 - update) * candidate + update * state
            return state, state

        start = jnp.zeros((2, x.shape[1], hidden_kernel.shape[1]), jnp.float32)
        _, states = jax.lax.scan(step, start, gates.transpose(2, 0, 1, 3))
        forward, backward = states.transpose(1, 2, 0, 3)
        return (forward + reverse(backward, lengths)) / 2

    def _both(self, name: str) -> Array:
        return jnp.stack([getattr(self.forward, name)[...], getattr(self.backward, name)[...]])


def reverse(x: Array, lengths: Array) -> Array:
    """Reverses the first `lengths` `[B]` rows of each sequence in `x` `[B, L, F]`. The padding after them stays."""
    position = jnp.arange(x.shape[1])
    source = jnp.where(position < lengths[:, None], lengths[:, None] - 1 - position, position)
    return jnp.take_along_axis(x, source[..., None], axis=1)
