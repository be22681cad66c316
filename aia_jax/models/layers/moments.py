"""Sums, means and variances over images and batches, in as few kernels as XLA allows on GPUs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

# XLA's GPU code reduces columns of more rows than this in two kernels,
_ROWS_OF_ONE_KERNEL = 4096
# and lets the next kernel take in sums over fewer rows than this.
_ROWS_TAKEN_IN = 32


def image_moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each image's channels, float32 `[B, C]`, in one pass over `x` `[B, H, W, C]`.

    Float32 images are centred on one of their own pixels, which keeps E[x^2] - E[x]^2 from cancelling where the mean
    is far larger than the deviation. In bfloat16 the rounding of `x` itself is far larger than what cancels.
    """
    centre = None
    if x.dtype == jnp.float32:
        centre = jax.lax.stop_gradient(x[:, x.shape[1] // 2, x.shape[2] // 2])
        x = x - centre[:, None, None]
    x = x.astype(jnp.float32)
    mean = x.mean(axis=(1, 2))
    var = jnp.square(x).mean(axis=(1, 2)) - jnp.square(mean)
    return (mean if centre is None else centre + mean), var


def pool_moments(mean: Array, var: Array) -> tuple[Array, Array]:
    """Mean and biased variance `[C]` of a batch from those of its images `[B, C]`."""
    pooled = mean.mean(axis=0)
    return pooled, jnp.maximum((var + jnp.square(mean - pooled)).mean(axis=0), 0)


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance, float32 `[C]`, of `x` `[B, H, W, C]`, in one pass over it; not for autodiff."""
    if x.dtype == jnp.float32:
        return pool_moments(*image_moments(x))
    x = x.astype(jnp.float32)
    count = x.size // x.shape[-1]
    total, square = sums((x, jnp.square(x)), (0, 1, 2), taken_in=True)
    mean = total / count
    return mean, jnp.maximum(square / count - jnp.square(mean), 0)


def sums(arrays: tuple[Array, ...], axes: tuple[int, ...], *, taken_in: bool = False) -> tuple[Array, ...]:
    """Sums of equally shaped float32 arrays over the same axes; one reduction on GPUs, several for XLA's CPU.

    Where a mesh is set, axis 0 is split over all its devices: each sums what it has, and they add up the results.
    Left to itself, XLA would gather the results of one reduction of several arrays from all devices to all.

    Args:
        taken_in: the sums are over all axes but the last, and needed by one small kernel only, which then does the last
            of the summation on GPUs. To a large kernel it would be work done over and over.
    """

    def separate(*arrays: Array) -> tuple[Array, ...]:
        return tuple(array.sum(axis=axes) for array in arrays)

    def together(*arrays: Array) -> tuple[Array, ...]:
        parts = _parts(math.prod(arrays[0].shape[:-1])) if taken_in else 0
        if not parts:
            return _reduced(arrays, axes)
        split = tuple(array.reshape(parts, -1, array.shape[-1]) for array in arrays)
        # Without the barrier XLA would make one reduction of the two.
        return tuple(part.sum(axis=0) for part in jax.lax.optimization_barrier(_reduced(split, (1,))))

    def local(*arrays: Array) -> tuple[Array, ...]:
        return jax.lax.platform_dependent(*arrays, cuda=together, default=separate)

    return over_devices(local, *arrays) if 0 in axes else local(*arrays)


def over_devices(local: Callable[..., Any], *arrays: Array) -> Any:
    """`local(*arrays)`, sums over axis 0; where a mesh is set each device sums what it has of it, and they add up."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(*arrays)
    everywhere = functools.partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec(mesh.axis_names))
    return everywhere(lambda *parts: jax.lax.psum(local(*parts), mesh.axis_names), out_specs=PartitionSpec())(*arrays)


def image_sums(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Sums over each image in parts, `[B, n, C]` of equally shaped float32 `[B, H, W, C]`; n is at most 31.

    What needs them sums over n: XLA's GPU code takes that in.
    """
    batch, height, width, channels = arrays[0].shape
    parts = _parts(height * width) or 1
    return sums(tuple(array.reshape(batch, parts, -1, channels) for array in arrays), (2,))


def image_positions(x: Array) -> int:
    """H W of `x` `[B, H, W, C]`."""
    return x.shape[1] * x.shape[2]


def _reduced(arrays: tuple[Array, ...], axes: tuple[int, ...]) -> tuple[Array, ...]:
    zeros = tuple(jnp.zeros((), jnp.float32) for _ in arrays)
    return tuple(jax.lax.reduce(arrays, zeros, lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)), axes))


def _parts(rows: int) -> int:
    """The most parts of `rows` whose sums the next kernel takes in, each summed in one kernel; 0 if there are none."""
    fit = [n for n in range(1, _ROWS_TAKEN_IN) if rows % n == 0 and _ROWS_TAKEN_IN <= rows // n <= _ROWS_OF_ONE_KERNEL]
    return max(fit, default=0)
