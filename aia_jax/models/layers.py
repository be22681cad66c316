"""Layers and array functions that several models share. Images and features are NHWC throughout."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

kaiming_normal = initializers.variance_scaling(2.0, "fan_out", "normal")


def uniform(bound: float) -> initializers.Initializer:
    """Initialiser that draws uniformly from [-bound, bound]."""

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Frozen(nnx.Variable):
    """A value that belongs to the model, is saved with it and is never trained."""


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

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises `x` `[B, H, W, C]` over B, H and W; the result has the compute dtype."""
        x = x.astype(jnp.float32)
        if train:
            mean, var = moments(x)
            self._update(mean, var, count=x.size // x.shape[-1])
        else:
            mean, var = self.mean[...], self.var[...]
        y = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]
        return y.astype(self.dtype)

    def _update(self, mean: Array, var: Array, count: int) -> None:
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] += self.momentum * (jax.lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += self.momentum * (jax.lax.stop_gradient(unbiased) - self.var[...])


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance `[C]` of float32 `x` `[B, H, W, C]`, right for a mean far larger than the deviation.

    One pass over `x`: each image is centred on one of its own pixels, which keeps E[x^2] - E[x]^2 from cancelling,
    and the images' moments are then pooled.
    """
    _, height, width, _ = x.shape
    centre = jax.lax.stop_gradient(x[:, height // 2, width // 2])
    centred = x - centre[:, None, None]
    offset = centred.mean(axis=(1, 2))
    image_var = jnp.square(centred).mean(axis=(1, 2)) - jnp.square(offset)
    image_mean = centre + offset
    mean = image_mean.mean(axis=0)
    return mean, (image_var + jnp.square(image_mean - mean)).mean(axis=0)


class ConvNorm(nnx.Module):
    """Convolution of stride 1 without bias, padded to keep the size, then batch norm."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        scale_init: initializers.Initializer = initializers.ones,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv = nnx.Conv(
            in_features,
            out_features,
            (kernel_size, kernel_size),
            padding=kernel_size // 2,
            use_bias=False,
            kernel_init=kaiming_normal,
            **options,
        )
        self.bn = BatchNorm(out_features, scale_init=scale_init, **options)

    def __call__(self, x: Array, *, train: bool) -> Array:
        return self.bn(self.conv(x), train=train)


def torch_linear(
    in_features: int,
    out_features: int,
    *,
    kernel_init: initializers.Initializer | None = None,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Linear layer with torch's default initialisation: uniform in +-1/sqrt(in_features), the bias always so."""
    default = uniform(in_features**-0.5)
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=kernel_init or default,
        bias_init=default,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def layer_norm(num_features: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm over the last axis with torch's epsilon and a variance that cannot cancel."""
    return nnx.LayerNorm(
        num_features, epsilon=1e-5, use_fast_variance=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )


def dropout_key(key: Array | None, rate: float, train: bool) -> Array | None:
    """The key that dropout at `rate` is to use: None where there is none to apply.

    Raises:
        ValueError: dropout is to be applied and no key was given.
    """
    if not train or rate == 0:
        return None
    if key is None:
        raise ValueError(f"training with dropout {rate} needs a key")
    return key


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate). No key: `x` itself."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def split_key(key: Array | None, num: int) -> list[Array | None]:
    """`jax.random.split` that hands on the absence of a key, which means no dropout."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def run_blocks(blocks: nnx.List, train: bool, x: Array) -> Array:
    """`x` through the blocks of a stage, one after the other."""
    for block in blocks:
        x = block(x, train=train)
    return x


def space_to_depth(x: Array, block: int) -> Array:
    """`[B, H, W, C] -> [B, H/n, W/n, n*n*C]` by n x n blocks; new channel = (row, column, channel)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // block, block, width // block, block, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, block * block * channels)


def blur_pool(x: Array) -> Array:
    """Halves height and width (rounding up) with the binomial filter [1 2 1] x [1 2 1] / 16, reflecting at the border.

    Zhang 2019, arXiv 1904.11486. Slices and adds: a depthwise convolution and its gradient are slow on GPUs.
    """
    blurred = _blur_axis(_blur_axis(x.astype(jnp.float32), axis=1), axis=2)
    return blurred.astype(x.dtype)


def _blur_axis(x: Array, axis: int) -> Array:
    """Output i is x[2i - 1] / 4 + x[2i] / 2 + x[2i + 1] / 4 along `axis`; the neighbours are the odd positions."""
    size = x.shape[axis]
    if size < 2:
        raise ValueError(f"blur pooling reflects at the border and needs at least 2 positions, got {size}")

    def odd(start: int, stop: int) -> Array:
        return jax.lax.slice_in_dim(x, start, stop, stride=2, axis=axis)

    even = jax.lax.slice_in_dim(x, 0, size, stride=2, axis=axis)
    left = jnp.concatenate([odd(1, 2), odd(1, size - 1)], axis) if size > 2 else odd(1, 2)
    right = odd(1, size) if size % 2 == 0 else jnp.concatenate([odd(1, size), odd(size - 2, size - 1)], axis)
    return 0.5 * even + 0.25 * (left + right)


def average_pool(x: Array) -> Array:
    """Means over 2 x 2 with stride 2, `[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C]`; padding is not counted."""
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        # The mean of the last row and a copy of it is that row.
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    pairs = x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    return pairs.mean(axis=(2, 4), dtype=jnp.float32).astype(x.dtype)
