"""Layer norm, in as few passes over memory as XLA allows."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from aia_jax.models.layers.moments import sums


class LayerNorm(nnx.LayerNorm):
    """Layer norm over the last axis with torch's epsilon.

    Float32 runs are held against PyTorch's: a variance that cannot cancel, and autodiff's derivatives. In other dtypes
    one pass gives mean and variance. What cancels is below the rounding of the input, unless a row is all but constant:
    a variance under some 1e-6 of the squared mean is wrong. A leading 1, rows that serve a whole batch, cannot be split
    over devices and is little work: flax's code does it.
    """

    def __init__(self, num_features: int, **options):
        super().__init__(num_features, epsilon=1e-5, use_fast_variance=False, **options)

    def __call__(self, x: Array) -> Array:
        """`x` `[..., D]`, normalised, in the compute dtype."""
        if self.dtype == jnp.float32 or x.shape[0] == 1:
            return super().__call__(x)
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        return _normalised_rows(x.astype(self.dtype), scale, bias, self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalised_rows(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Layer norm of `x` `[..., D]` in as few passes as XLA allows: one for the statistics, one for the result."""
    return _normalise(x, scale, bias, epsilon)[0]


def _normalised_rows_forward(x, scale, bias, epsilon):
    # In training alone: a program with constraints on orders cannot be exported.
    y, (x, *rest) = _normalise(_row_major(x), scale, bias, epsilon)
    return _row_major(y), (x, *rest)


def _normalise(x, scale, bias, epsilon):
    wide = x.astype(jnp.float32)
    mean, square = (total / x.shape[-1] for total in sums((wide, jnp.square(wide)), (x.ndim - 1,)))
    inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + epsilon)
    mean, inverse, x = jax.lax.optimization_barrier((mean, inverse, x))
    y = (x.astype(jnp.float32) - mean[..., None]) * inverse[..., None] * scale + bias
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _normalised_rows_backward(_epsilon, residuals, dy):
    x, scale, mean, inverse = residuals
    dy = _row_major(dy)
    last = x.ndim - 1
    rows = tuple(range(last))

    def parts(x, dy):
        return dy.astype(jnp.float32), (x.astype(jnp.float32) - mean[..., None]) * inverse[..., None]

    wide, normalised = parts(x, dy)
    dbias, dscale = sums((wide, wide * normalised), rows)
    total, product = sums((wide * scale, wide * scale * normalised), (last,))
    x, dy, total, product = jax.lax.optimization_barrier((x, dy, total, product))
    wide, normalised = parts(x, dy)
    dx = (wide * scale - (total[..., None] + normalised * product[..., None]) / x.shape[-1]) * inverse[..., None]
    return _row_major(dx.astype(x.dtype)), dscale, dbias


_normalised_rows.defvjp(_normalised_rows_forward, _normalised_rows_backward)


def _row_major(x: Array) -> Array:
    """The same array, its last axis kept the fastest by XLA's GPU code, which would choose the batch."""
    layout = Layout(tuple(range(x.ndim)))

    def local(x: Array) -> Array:
        return jax.lax.platform_dependent(x, cuda=lambda x: with_layout_constraint(x, layout), default=lambda x: x)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(x)
    # Outside `shard_map` XLA gathers a constrained array onto every device.
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows)(x)
