"""Squeeze-and-excitation's gates: from sums over images to gates, and the way back.

Products of a few hundred rows, so that what counts is how many kernels a GPU has to start for them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from aia_jax.models.layers.common import relu
from aia_jax.models.layers.moments import image_positions, over_devices, sums


class Sums(NamedTuple):
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


class Opened(NamedTuple):
    """Gates, and what their way back needs.

    Attributes:
        means: of the activation, `[B, C]`.
        hidden: the layer between the two products, `[B, R]`.
        gate: `[B, C]`.
        normalised, slopes: sums over each image of the activation's slopes times the normalised values, and of the
            slopes, `[B, C]`.
    """

    means: Array
    hidden: Array
    gate: Array
    normalised: Array
    slopes: Array


class Back(NamedTuple):
    """What a gate's backward pass gives beside the gradients of its weights.

    Attributes:
        dexcited, dhidden: cotangents before the sigmoid `[B, C]` and before the ReLU `[B, R]`.
        share: cotangent of the means over the number of positions, `[B, C]`.
        dweight, dbias: of the norm, `[C]`.
    """

    dexcited: Array
    dhidden: Array
    share: Array
    dweight: Array
    dbias: Array


def excite(weights: tuple[Array, Array, Array], means: Array) -> tuple[Array, Array]:
    """The hidden layer `[B, R]`, and from means `[B, C]` the gates `[B, C]` but for the last bias and the sigmoid.

    Args:
        weights: kernel `[C, R]` and bias `[R]` of the first layer, kernel `[R, C]` of the second.
    """
    kernel1, bias1, kernel2 = weights
    hidden = relu(means @ kernel1 + bias1)
    return hidden, hidden @ kernel2


def open_gates(
    parts: Sums,
    weight: Array,
    bias: Array,
    gate_weights: tuple[Array, ...],
    positions: int,
    *,
    linear: bool,
) -> Opened:
    """Gates from sums over each image.

    Args:
        weight, bias: of the norm, `[C]`.
        gate_weights: kernel `[C, R]` and bias `[R]` of the first layer, `[R, C]` and `[C]` of the second.
        positions: of an image, H W.
        linear: there is no activation between norm and gate: slopes are a constant, which need not be written.
    """

    slopes = parts.slopes.sum(axis=1)
    normalised = (parts.values.sum(axis=1) - parts.shift * slopes) * parts.inverse
    means = (normalised * weight + slopes * bias) / positions
    # Written to memory, so that the backward pass need not add up the parts again.
    means, normalised = jax.lax.optimization_barrier((means, normalised))
    slopes = slopes if linear else jax.lax.optimization_barrier(slopes)
    return Opened(means, *_gates(means, gate_weights), normalised, slopes)


def close_gates(
    of_da: tuple[Array, Array],
    opened: Opened,
    weight: Array,
    bias: Array,
    gate_weights: tuple[Array, ...],
    positions: int,
) -> Back:
    """The small part of the way back through norm, activation and gate.

    Args:
        of_da: sums over each image of the activation's cotangent times normalised values, and of that cotangent, in
            parts `[B, n, C]`.
        opened: what `open_gates` gave.
        weight, bias, gate_weights, positions: see `open_gates`.
    """
    kernel1, _, kernel2, _ = gate_weights

    da_normalised, da = (part.sum(axis=1) for part in of_da)
    dexcited = (weight * da_normalised + bias * da) * opened.gate * (1 - opened.gate)
    dexcited, da_normalised, da = jax.lax.optimization_barrier((dexcited, da_normalised, da))
    dhidden, share = _back_to_means(dexcited, opened.hidden, kernel1, kernel2, positions)
    dweight, dbias = sums(
        (opened.gate * da_normalised + share * opened.normalised, opened.gate * da + share * opened.slopes), (0,)
    )
    return Back(dexcited, dhidden, share, dweight, dbias)


@jax.custom_vjp
def gate_images(x: Array, gate_weights: tuple[Array, ...]) -> Array:
    """Squeeze-and-excitation of `x` `[B, H, W, C]` by itself; `gate_weights` as of `open_gates`."""
    return _gate_images_forward(x, gate_weights)[0]


def _gate_images_forward(x, gate_weights):
    # The barrier has `x` written once, in its own dtype; both passes would have it written in float32.
    x = jax.lax.optimization_barrier(x)
    means = (x.astype(jnp.float32) / image_positions(x)).sum(
        axis=(1, 2)
    )  # a division after the sum would be a kernel more
    hidden, gate = _gates(means, gate_weights)
    return (x * gate[:, None, None]).astype(x.dtype), (x, gate_weights, means, hidden, gate)


def _gate_images_backward(residuals, dy):
    x, gate_weights, means, hidden, gate = residuals
    kernel1, _, kernel2, _ = gate_weights
    x, dy = jax.lax.optimization_barrier((x, dy))
    slopes = (gate * (1 - gate))[:, None, None]
    dexcited = (dy.astype(jnp.float32) * x.astype(jnp.float32) * slopes).sum(axis=(1, 2))
    dhidden, share = _back_to_means(dexcited, hidden, kernel1, kernel2, image_positions(x))
    dy, share = jax.lax.optimization_barrier((dy, share))
    dx = dy.astype(jnp.float32) * gate[:, None, None] + share[:, None, None]
    return dx.astype(x.dtype), weight_gradients(means, hidden, dexcited, dhidden)


gate_images.defvjp(_gate_images_forward, _gate_images_backward)


def weight_gradients(means: Array, hidden: Array, dexcited: Array, dhidden: Array) -> tuple[Array, ...]:
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


def _gates(means: Array, gate_weights: tuple[Array, ...]) -> tuple[Array, Array]:
    """The hidden layer `[B, R]` and the gates `[B, C]`."""
    *weights, bias2 = gate_weights
    hidden, excited = excite(tuple(weights), means)
    # The barrier keeps the bias out of the matmul, which would need it in memory of its own: one more kernel.
    return hidden, jax.nn.sigmoid(jax.lax.optimization_barrier(excited) + bias2)


def _back_to_means(
    dexcited: Array, hidden: Array, kernel1: Array, kernel2: Array, positions: int
) -> tuple[Array, Array]:
    """Cotangents of the hidden layer before its ReLU, and of the means, over the number of positions."""
    dhidden = dexcited @ kernel2.T
    # Twice, so that each of the two kernels that need it takes it in. As a sum, not as a matmul, for the same.
    again, rows, kernel1 = jax.lax.optimization_barrier((hidden, dhidden, kernel1))
    share = (jnp.where(again == 0, 0, rows / positions)[:, None] * kernel1).sum(axis=2)
    return jnp.where(hidden == 0, 0, dhidden), share


def _with_one(rows: Array, size: int) -> Array:
    return _widened(jnp.pad(rows, ((0, 0), (0, 1)), constant_values=1), size)


def _widened(rows: Array, size: int) -> Array:
    return jnp.pad(rows, ((0, 0), (0, size - rows.shape[1])))
