"""Batch normalisation, with what follows it in a network, in as few passes over memory as XLA allows.

A convolution's output of a TResNet is far too large for any cache, so a training step takes as long as it moves bytes.
Written out by autodiff, norm, activation, blur pool and gate would write their intermediates to memory and read them
again. The functions here keep only their input and compute the rest anew: two passes forward, two backward.
`docs/performance.md` counts them.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from aia_jax.models.layers.common import blur_pool
from aia_jax.models.layers.moments import moments, sums


class BatchNorm(nnx.Module):
    """Batch normalisation with torch's conventions; statistics are float32 whatever the compute dtype.

    In training the statistics are those of the whole batch (of all devices, where `jax.jit` shards it), and the
    running ones move by `momentum` towards them; the running variance is the unbiased one.

    Attributes:
        scale, bias: `[C]`, trained.
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

    def __call__(self, x: Array, *, train: bool, slope: float = 1.0, blur: bool = False) -> Array:
        """Normalises `x` `[B, H, W, C]` over B, H and W; the result has the compute dtype.

        Args:
            slope: leaky ReLU with this negative slope follows; 1: none does.
            blur: blur pooling follows that, `[B, ceil(H/2), ceil(W/2), C]`.
        """
        if train:
            y, mean, var = norm_act(x, *self.weights(), slope, self.epsilon, blur)
            self.update(mean, var, x.size // x.shape[-1])
        else:
            y = act(x, *self.affine(), slope, blur)
        return y.astype(self.dtype)

    def affine(self, mean: Array | None = None, var: Array | None = None) -> tuple[Array, Array]:
        """Scale and offset `[C]` float32 that normalise with these statistics; without any, with the running ones."""
        if mean is None or var is None:
            mean, var = self.mean[...], self.var[...]
        weight, bias = self.weights()
        scale = jax.lax.rsqrt(var + self.epsilon) * weight
        return scale, bias - mean * scale

    def folded_into(self, kernel: Array) -> tuple[Array, Array]:
        """The convolution that does alone what one with `kernel` `[..., C]` and then this norm do in evaluation.

        Returns:
            Its kernel `[..., C]` and its bias `[C]`, both float32.
        """
        scale, offset = self.affine()
        return kernel.astype(jnp.float32) * scale, offset

    def weights(self) -> tuple[Array, Array]:
        """Scale and bias `[C]`, float32."""
        return self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)

    def update(self, mean: Array, var: Array, count: int) -> None:
        """Moves the running statistics towards the mean and biased variance `[C]` of `count` positions."""
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] += self.momentum * (jax.lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += self.momentum * (jax.lax.stop_gradient(unbiased) - self.var[...])


def act(x: Array, scale: Array, offset: Array, slope: float, blur: bool) -> Array:
    """`x * scale + offset` in float32, leaky ReLU and, if asked for, blur pooling, in the dtype of `x`."""
    y = jax.nn.leaky_relu(x.astype(jnp.float32) * scale + offset, slope)
    return (blur_pool(y) if blur else y).astype(x.dtype)


def back_through_act(
    x: Array, scale: Array, offset: Array, slope: float, cotangents: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Cotangents of leaky ReLU's output to those of its input, `x * scale + offset`."""
    positive = x.astype(jnp.float32) * scale + offset >= 0
    return tuple(jnp.where(positive, cotangent, slope * cotangent) for cotangent in cotangents)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def norm_act(
    x: Array, weight: Array, bias: Array, slope: float, epsilon: float, blur: bool
) -> tuple[Array, Array, Array]:
    """Batch norm, leaky ReLU and, if asked for, blur pooling, all in training.

    Args:
        x: `[B, H, W, C]`.
        weight, bias: of the norm, `[C]`.
        slope: negative slope; 1 for no activation.

    Returns:
        The result in the dtype of `x`; and mean and biased variance float32 `[C]`, whose cotangents are not used.
    """
    return _norm_act_forward(x, weight, bias, slope, epsilon, blur)[0]


def _norm_act_forward(x, weight, bias, slope, epsilon, blur):
    mean, var = moments(x)
    inverse = jax.lax.rsqrt(var + epsilon)
    scale = inverse * weight
    y = act(x, scale, bias - mean * scale, slope, blur)
    return (y, mean, var), (x, weight, bias, mean, inverse)


def _norm_act_backward(slope, epsilon, blur, residuals, cotangents):
    x, weight, bias, mean, inverse = residuals
    dy = cotangents[0]
    scale = inverse * weight
    offset = bias - mean * scale

    def parts(x, dy):
        dy = dy.astype(jnp.float32)
        if blur:
            dy = jax.linear_transpose(blur_pool, jax.ShapeDtypeStruct(x.shape, jnp.float32))(dy)[0]
        return *back_through_act(x, scale, offset, slope, (dy,)), (x.astype(jnp.float32) - mean) * inverse

    # The barriers make XLA compute the parts again in each pass; it would write them to memory and read them instead.
    x = jax.lax.optimization_barrier(x)
    dz, normalised = parts(x, dy)
    dbias, dweight = sums((dz, dz * normalised), (0, 1, 2))
    x, dy, dbias, dweight = jax.lax.optimization_barrier((x, dy, dbias, dweight))
    dz, normalised = parts(x, dy)
    dx = scale * (dz - (dbias + normalised * dweight) / math.prod(x.shape[:3]))
    return dx.astype(x.dtype), dweight, dbias


norm_act.defvjp(_norm_act_forward, _norm_act_backward)
