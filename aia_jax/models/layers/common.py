"""Functions and layers that several models share. Images and features have the axis order NHWC."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

EPSILON = 1e-8  # added to lengths in `l2norm`
kaiming_normal = initializers.variance_scaling(2.0, "fan_out", "normal")


def uniform(bound: float) -> initializers.Initializer:
    """Returns an initialiser that samples uniformly from [-bound, bound]."""

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Frozen(nnx.Variable):
    """A value that is saved with the model and never trained."""


@jax.custom_vjp
def relu(x: Array) -> Array:
    """Computes max(x, 0). The backward pass uses the output, so that XLA does not store the input."""
    return jnp.maximum(x, 0)


# Compares `y == 0`, because XLA would replace `y > 0` by a comparison of the input.
relu.defvjp(lambda x: (y := relu(x), y), lambda y, dy: (jnp.where(y == 0, 0, dy),))


def torch_linear(in_features: int, out_features: int, **options) -> nnx.Linear:
    """Builds a linear layer with PyTorch's default initialisation: uniform in [-b, b], b = 1/sqrt(in_features).

    `options` are passed to `nnx.Linear`.
    """
    default = uniform(in_features**-0.5)
    return nnx.Linear(in_features, out_features, **{"kernel_init": default, "bias_init": default} | options)


def xavier_linear(in_features: int, out_features: int, **options) -> nnx.Linear:
    """Builds a linear layer with Xavier uniform initialisation and bias 0. Passes `options` to `nnx.Linear`."""
    return nnx.Linear(in_features, out_features, kernel_init=initializers.xavier_uniform(), **options)


def l2norm(x: Array, axis: int = -1) -> Array:
    """Divides `x` by its L2 norm along `axis` plus 1e-8. Where the norm is 0, its gradient is 0 instead of NaN."""
    square = jnp.square(x).sum(axis=axis, keepdims=True)
    positive = square > 0
    length = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
    return x / (length + EPSILON)


def dropout_key(key: Array | None, rate: float, train: bool) -> Array | None:
    """Returns `key` if training uses dropout, else None. Raises ValueError if dropout needs a key and `key` is None."""
    if not train or rate == 0:
        return None
    if key is None:
        raise ValueError(f"training with dropout {rate} needs a key")
    return key


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """If `key` is given, sets elements to 0 with probability `rate`, and scales the others by 1 / (1 - rate)."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, (x.size,)).reshape(x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def split_key(key: Array | None, num: int) -> list[Array | None]:
    """Splits a key into a list of `num` keys. For None, returns `[None] * num`. If `num` is 1, returns `[key]`."""
    if key is None or num == 1:
        return [key] * num
    return list(jax.random.split(key, num))


def run_blocks(blocks: nnx.List, train: bool, remat: bool, x: Array) -> Array:
    """Applies the blocks of a stage one after the other.

    Args:
        remat: whether training stores only the input of each block, and computes the rest again in the backward pass.
    """

    def run(block: nnx.Module, x: Array) -> Array:
        return block(x, train=train)

    for block in blocks:
        x = nnx.remat(run)(block, x) if remat and train else run(block, x)
    return x


def space_to_depth(x: Array, block: int) -> Array:
    """Maps `[B, H, W, C]` to `[B, H/n, W/n, n*n*C]` for n = `block`. Channels are ordered (row, column, channel)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // block, block, width // block, block, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, block * block * channels)


def blur_pool(x: Array) -> Array:
    """Halves height and width (rounding up) with the filter [1 2 1] x [1 2 1] / 16 and reflection at the border.

    Source: Zhang 2019, arXiv 1904.11486. This code uses slices and sums, because depthwise convolutions and their
    gradients are slow on GPUs.
    """
    blurred = _blur_axis(_blur_axis(x.astype(jnp.float32), axis=1), axis=2)
    return blurred.astype(x.dtype)


def _blur_axis(x: Array, axis: int) -> Array:
    """Computes y[i] = x[2i - 1] / 4 + x[2i] / 2 + x[2i + 1] / 4 along `axis`."""
    size = x.shape[axis]
    if size < 2:
        raise ValueError(f"blur pooling reflects at the border and needs at least 2 positions, got {size}")
    even = jax.lax.slice_in_dim(x, 0, size, stride=2, axis=axis)
    odd = jax.lax.slice_in_dim(x, 1, size, stride=2, axis=axis)
    last = size % 2  # 1: the last even position has no neighbour after it
    # XLA fuses padding and selection into one loop. XLA would write a concatenated array to memory.
    before, after = _padded(odd, axis, 1, last - 1), _padded(odd, axis, 0, last)
    position = np.arange(even.shape[axis]).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    left = jnp.where(position == 0, after, before)
    right = jnp.where(position == size // 2, before, after) if last else after
    return 0.5 * even + 0.25 * (left + right)


def _padded(x: Array, axis: int, low: int, high: int) -> Array:
    """Adds `low` zeros before and `high` zeros after `x` along `axis`. Negative numbers remove elements."""
    edges = [(low, high, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), edges)


def average_pool(x: Array) -> Array:
    """Averages 2 x 2 positions, or fewer at the border: `[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C]`."""
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        # Copies the last row or column. The mean of two equal rows is that row.
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    pairs = x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    return pairs.mean(axis=(2, 4), dtype=jnp.float32).astype(x.dtype)
