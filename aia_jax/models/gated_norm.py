"""Batch norm, leaky ReLU and squeeze-and-excitation as one function with its own backward pass.

What a gate needs of an image are sums over it; see `aia_jax.models.batch_norm` for the rest.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from aia_jax.models import gate_kernels
from aia_jax.models.batch_norm import act, back_through_act
from aia_jax.models.layers import relu
from aia_jax.models.moments import image_moments, image_sums, moments, over_devices, pool_moments, sums


class GateOptions(NamedTuple):
    """What is fixed of a gate and the norm before it.

    Attributes:
        slope: negative slope of the leaky ReLU between them; 1 for none.
        epsilon: of the norm.
        kernels: compute gates, and what is small in their backward pass, in GPU kernels of our own, where they fit.
    """

    slope: float
    epsilon: float
    kernels: bool = False


class _Sums(NamedTuple):
    """Of each image, what tells the sum of the normalised values times the activation's slopes, and of the slopes.

    Attributes:
        values: sums of slopes times values, in parts `[B, n, C]`.
        slopes: sums of slopes, in parts `[B, n, C]`.
        shift: `[C]`, still to be taken from the values.
        inverse: of the batch's deviation, `[C]`.
    """

    values: Array
    slopes: Array
    shift: Array
    inverse: Array


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
        slopes = jnp.full((x.shape[0], 1, x.shape[-1]), _positions(x), jnp.float32)
        parts = _Sums(values, slopes, mean, inverse)
    else:
        slopes = jnp.where(x.astype(jnp.float32) * scale + offset >= 0, 1.0, options.slope)
        values, slopes = image_sums((slopes * (x.astype(jnp.float32) - mean), slopes))
        parts = _Sums(values, slopes, jnp.zeros_like(mean), inverse)
    means, hidden, gate = _open(parts, weight, bias, gate_weights, _positions(x), options.kernels)
    again, gate = jax.lax.optimization_barrier((x, gate))
    y = act(again.astype(jnp.float32), scale, offset, options.slope, False) * gate[:, None, None]
    return (y.astype(x.dtype), mean, var), (x, weight, bias, gate_weights, mean, parts, means, hidden, gate)


def _moments_by_image(x: Array) -> tuple[Array, Array, Array]:
    """Sums over each image in parts `[B, n, C]`, mean and biased variance of the batch `[C]`, in one pass over `x`."""
    if x.dtype == jnp.float32:
        means, variances = image_moments(x)
        return (means * _positions(x))[:, None], *pool_moments(means, variances)
    x = x.astype(jnp.float32)
    values, squares = image_sums((x, jnp.square(x)))
    total, square = sums((values, squares), (0, 1))
    count = x.size // x.shape[-1]
    mean = total / count
    return values, mean, jnp.maximum(square / count - jnp.square(mean), 0)


def _backward(options, residuals, cotangents):
    x, weight, bias, gate_weights, mean, parts, means, hidden, gate = residuals
    dy, inverse = cotangents[0], parts.inverse
    scale = inverse * weight
    offset = bias - mean * scale
    # The barriers make XLA compute what both passes need again in each; it would write it to memory.
    x, dy = jax.lax.optimization_barrier((x, dy))
    (da,) = back_through_act(x, scale, offset, options.slope, (dy.astype(jnp.float32),))
    # The activation is slopes * (weight * normalised + bias), so two sums over each image hold all that is needed.
    of_da = image_sums((da * (x.astype(jnp.float32) - mean) * inverse, da))
    back = _close(of_da, parts, hidden, gate, weight, bias, gate_weights, _positions(x), options.kernels)
    x, dy, dweight, dbias, share = jax.lax.optimization_barrier((x, dy, back.dweight, back.dbias, back.share))
    da = dy.astype(jnp.float32) * gate[:, None, None] + share[:, None, None]
    (dz,) = back_through_act(x, scale, offset, options.slope, (da,))
    normalised = (x.astype(jnp.float32) - mean) * inverse
    dx = scale * (dz - (dbias + normalised * dweight) / math.prod(x.shape[:3]))
    return dx.astype(x.dtype), dweight, dbias, _weight_gradients(means, hidden, back.dexcited, back.dhidden)


norm_act_gate.defvjp(_forward, _backward)


def _open(parts, weight, bias, gate_weights, positions, kernels):
    """Means of the activation `[B, C]`, the hidden layer `[B, R]` and the gates `[B, C]`."""

    def plain(values, slopes, shift, inverse, weight, bias, kernel1, bias1, kernel2, bias2):
        slopes = slopes.sum(axis=1)
        means = ((values.sum(axis=1) - shift * slopes) * (inverse * weight) + slopes * bias) / positions
        hidden = relu(means @ kernel1 + bias1)
        # The barrier keeps the bias out of the matmul, which would need it in memory of its own: one more kernel.
        return means, hidden, jax.nn.sigmoid(jax.lax.optimization_barrier(hidden @ kernel2) + bias2)

    return gate_kernels.choose(kernels, plain, gate_kernels.opened, positions, *parts, weight, bias, *gate_weights)


def _close(of_da, parts, hidden, gate, weight, bias, gate_weights, positions, kernels):
    """The small part of the backward pass."""
    kernel1, _, kernel2, _ = gate_weights

    def plain(da_normalised, da, values, slopes, hidden, gate, shift, inverse, weight, bias, kernel1, kernel2):
        da_normalised, da, values, slopes = (p.sum(axis=1) for p in (da_normalised, da, values, slopes))
        normalised = (values - shift * slopes) * inverse
        dexcited = (weight * da_normalised + bias * da) * gate * (1 - gate)
        dhidden = dexcited @ kernel2.T
        # Twice, so that each of the two kernels that need it takes it in. As a sum, not as a matmul, for the same.
        again, rows, kernel1 = jax.lax.optimization_barrier((hidden, dhidden, kernel1))
        share = (jnp.where(again == 0, 0, rows / positions)[:, None] * kernel1).sum(axis=2)
        dweight, dbias = sums((gate * da_normalised + share * normalised, gate * da + share * slopes), (0,))
        return gate_kernels.Back(dexcited, jnp.where(hidden == 0, 0, dhidden), share, dweight, dbias)

    values, slopes, shift, inverse = parts
    arrays = (*of_da, values, slopes, hidden, gate, shift, inverse, weight, bias, kernel1, kernel2)
    return gate_kernels.choose(kernels, plain, gate_kernels.closed, positions, *arrays)


def _weight_gradients(means, hidden, dexcited, dhidden):
    """Of kernel and bias of both layers, in one sum over the batch; XLA computes that of several gates at once."""
    size = max(means.shape[1], hidden.shape[1]) + 1

    def local(means, hidden, dexcited, dhidden):
        first = jax.lax.broadcasted_iota(jnp.int32, (2, 1, 1), 0) == 0
        left = jnp.where(first, _with_one(means, size), _with_one(hidden, size))
        right = jnp.where(first, _widened(dhidden, size), _widened(dexcited, size))
        products = (left[:, :, :, None] * right[:, :, None]).sum(axis=1)
        inputs, width = means.shape[1], hidden.shape[1]
        of_first, of_second = products[0, :, :width], products[1, :, :inputs]
        return of_first[:inputs], of_first[inputs], of_second[:width], of_second[width]

    return over_devices(local, means, hidden, dexcited, dhidden)


def _with_one(rows: Array, size: int) -> Array:
    return _widened(jnp.pad(rows, ((0, 0), (0, 1)), constant_values=1), size)


def _widened(rows: Array, size: int) -> Array:
    return jnp.pad(rows, ((0, 0), (0, size - rows.shape[1])))


def _positions(x: Array) -> int:
    return x.shape[1] * x.shape[2]
