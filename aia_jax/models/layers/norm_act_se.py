"""Batch norm, leaky ReLU and squeeze-and-excitation as one function with its own backward pass.

What a gate needs of an image are sums over it; see `aia_jax.models.layers.batch_norm` for the rest.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from aia_jax.models.layers.batch_norm import act, back_through_act
from aia_jax.models.layers.moments import image_moments, image_positions, image_sums, moments, pool_moments, sums
from aia_jax.models.layers.squeeze_excite import Sums, close_gates, open_gates, weight_gradients


class GateOptions(NamedTuple):
    """What is fixed of a gate and the norm before it.

    Attributes:
        slope: negative slope of the leaky ReLU between them; 1 for none.
        epsilon: of the norm.
    """

    slope: float
    epsilon: float


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def norm_act_gate(
    x: Array, weight: Array, bias: Array, gate_weights: tuple[Array, ...], options: GateOptions
) -> tuple[Array, Array, Array]:
    """Batch norm, leaky ReLU and squeeze-and-excitation, all in training.

    Args:
        x: `[B, H, W, C]`.
        weight, bias: of the norm, `[C]`.
        gate_weights: kernel `[C, R]` and bias `[R]` of the gate's first layer, `[R, C]` and `[C]` of its second.

    Returns:
        The result in the dtype of `x`; and mean and biased variance float32 `[C]`, whose cotangents are not used.
    """
    return _forward(x, weight, bias, gate_weights, options)[0]


def _forward(x, weight, bias, gate_weights, options):
    if options.slope == 1:
        values, mean, var = _moments_by_image(x)
    else:
        mean, var = moments(x)
    inverse = jax.lax.rsqrt(var + options.epsilon)
    scale = inverse * weight
    offset = bias - mean * scale
    if options.slope == 1:
        slopes = jnp.full((x.shape[0], 1, x.shape[-1]), image_positions(x), jnp.float32)
        parts = Sums(values, slopes, mean, inverse)
    else:
        slopes = jnp.where(x.astype(jnp.float32) * scale + offset >= 0, 1.0, options.slope)
        values, slopes = image_sums((slopes * (x.astype(jnp.float32) - mean), slopes))
        parts = Sums(values, slopes, jnp.zeros_like(mean), inverse)
    given = parts, weight, bias, gate_weights, image_positions(x)
    opened = open_gates(*given, linear=options.slope == 1)
    again, gate = jax.lax.optimization_barrier((x, opened.gate))
    y = act(again.astype(jnp.float32), scale, offset, options.slope, False) * gate[:, None, None]
    return (y.astype(x.dtype), mean, var), (x, weight, bias, gate_weights, mean, inverse, opened)


def _moments_by_image(x: Array) -> tuple[Array, Array, Array]:
    """Sums over each image in parts `[B, n, C]`, mean and biased variance of the batch `[C]`, in one pass over `x`."""
    if x.dtype == jnp.float32:
        means, variances = image_moments(x)
        return (means * image_positions(x))[:, None], *pool_moments(means, variances)
    x = x.astype(jnp.float32)
    values, squares = image_sums((x, jnp.square(x)))
    total, square = sums((values, squares), (0, 1))
    count = x.size // x.shape[-1]
    mean = total / count
    return values, mean, jnp.maximum(square / count - jnp.square(mean), 0)


def _backward(options, residuals, cotangents):
    x, weight, bias, gate_weights, mean, inverse, opened = residuals
    dy, gate = cotangents[0], opened.gate
    scale = inverse * weight
    offset = bias - mean * scale
    # The barriers make XLA compute what both passes need again in each; it would write it to memory.
    x, dy = jax.lax.optimization_barrier((x, dy))
    (da,) = back_through_act(x, scale, offset, options.slope, (dy.astype(jnp.float32),))
    # The activation is slopes * (weight * normalised + bias), so two sums over each image hold all that is needed.
    of_da = image_sums((da * (x.astype(jnp.float32) - mean) * inverse, da))
    back = close_gates(of_da, opened, weight, bias, gate_weights, image_positions(x))
    x, dy, dweight, dbias, share = jax.lax.optimization_barrier((x, dy, back.dweight, back.dbias, back.share))
    da = dy.astype(jnp.float32) * gate[:, None, None] + share[:, None, None]
    (dz,) = back_through_act(x, scale, offset, options.slope, (da,))
    normalised = (x.astype(jnp.float32) - mean) * inverse
    dx = scale * (dz - (dbias + normalised * dweight) / math.prod(x.shape[:3]))
    of_gate = weight_gradients(opened.means, opened.hidden, back.dexcited, back.dhidden)
    return dx.astype(x.dtype), dweight, dbias, of_gate


norm_act_gate.defvjp(_forward, _backward)
