"""Batch normalisation as a layer."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from aia_jax.models.layers.norm_act import norm_act
from aia_jax.models.layers.squeeze_excite import SEWeights


class BatchNorm(nnx.Module):
    """Batch normalisation with PyTorch's conventions. The statistics are always float32.

    Training uses the statistics of the whole batch, even if `jax.jit` shards the batch over several devices. Each step
    computes `running = (1 - momentum) * running + momentum * batch`, with the unbiased variance of the batch.

    Attributes:
        scale, bias: `[C]`, the trained parameters.
        mean, var: `[C]`, the running statistics.
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        scale_init: initializers.Initializer = initializers.ones,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.scale = nnx.Param(scale_init(rngs.params(), (num_features,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((num_features,), param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros((num_features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((num_features,), jnp.float32))

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises each channel of `x` `[B, H, W, C]`. The result has the layer's `dtype`."""
        if train:
            return self.normalize_activate(x)
        scale, offset = self.affine()
        return (x.astype(jnp.float32) * scale + offset).astype(self.dtype)

    def normalize_activate(
        self, x: Array, *, slope: float = 1.0, blur: bool = False, se_weights: SEWeights | None = None
    ) -> Array:
        """Applies `norm_act` with the layer's weights, and updates the running statistics."""
        y, mean, var = norm_act(x, *self.weights(), se_weights, slope, self.epsilon, blur)
        self.update(mean, var, x.size // x.shape[-1])
        return y.astype(self.dtype)

    def affine(self, mean: Array | None = None, var: Array | None = None) -> tuple[Array, Array]:
        """Returns scale and offset, float32 `[C]`, of the norm `x * scale + offset`. Default: running statistics."""
        if mean is None or var is None:
            mean, var = self.mean[...], self.var[...]
        weight, bias = self.weights()
        scale = jax.lax.rsqrt(var + self.epsilon) * weight
        return scale, bias - mean * scale

    def weights(self) -> tuple[Array, Array]:
        """Returns scale and bias `[C]` in float32."""
        return self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)

    def update(self, mean: Array, var: Array, count: int) -> None:
        """Updates the running statistics with the mean and biased variance `[C]` of `count` positions."""
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] += self.momentum * (jax.lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += self.momentum * (jax.lax.stop_gradient(unbiased) - self.var[...])
