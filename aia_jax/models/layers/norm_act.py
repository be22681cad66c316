"""Fuses batch norm and leaky ReLU with either blur pooling or squeeze-and-excitation, for training.

`norm_act` stores only its input for the backward pass, which recomputes the other arrays. Optimization barriers prevent
XLA from storing these arrays. `docs/performance.md` lists the saved memory traffic.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from aia_jax.models.layers.common import blur_pool
from aia_jax.models.layers.squeeze_excite import SEWeights, squeeze_excite_gate

_BATCH = (0, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def norm_act(
    x: Array, weight: Array, bias: Array, se_weights: SEWeights | None, slope: float, epsilon: float, blur: bool
) -> tuple[Array, Array, Array]:
    """Applies batch norm with the batch's statistics, then leaky ReLU, then blur pooling or squeeze-and-excitation.

    Args:
        x: `[B, H, W, C]`.
        weight, bias: float32 `[C]`, scale and bias of the norm.
        se_weights: weights of squeeze-and-excitation, or None to omit it. Ignored if `blur` is True.
        slope: negative slope of the leaky ReLU. 1 means no activation.
        epsilon: added to the variance.
        blur: whether to halve height and width by blur pooling.

    Returns:
        The result in the dtype of `x`, and the mean and biased variance of the batch, float32 `[C]`. Only the result
            has a gradient.
    """
    return _forward(x, weight, bias, se_weights, slope, epsilon, blur)[0]


def _forward(x, weight, bias, se_weights, slope, epsilon, blur):
    mean, var = moments(x)
    inverse = jax.lax.rsqrt(var + epsilon)
    scale = inverse * weight
    offset = bias - mean * scale
    excitation = None
    if se_weights is not None and not blur:
        slopes = _slopes(x, scale, offset, slope)
        normalised_sum, slopes_sum = image_sums(slopes * (x.astype(jnp.float32) - mean) * inverse, slopes)
        means = (weight * normalised_sum + bias * slopes_sum) / (x.shape[1] * x.shape[2])
        gate = squeeze_excite_gate(means, se_weights)
        excitation = se_weights, normalised_sum, slopes_sum, means, gate
    again, excitation = jax.lax.optimization_barrier((x, excitation))
    y = jax.nn.leaky_relu(again.astype(jnp.float32) * scale + offset, slope)
    if blur:
        y = blur_pool(y)
    elif excitation is not None:
        y = y * excitation[-1][:, None, None]
    return (y.astype(x.dtype), mean, var), (x, weight, bias, mean, inverse, excitation)


def _backward(slope, epsilon, blur, residuals, cotangents):
    """Computes the gradients of y = gate * slopes * z for z = weight * normalised + bias.

    The gate depends on m, the mean of slopes * z over each image. dgate is the gradient for the gate, and so on:
    dgate = sum(dy * slopes * z),  dz = slopes * (dy * gate + dm),  dbias = sum(dz),  dweight = sum(dz * normalised),
    dx = weight / deviation * (dz - mean(dz) - normalised * mean(dz * normalised)).
    For dgate, dbias and dweight, one pass over `x` and `dy` computes four sums over each image: the sums of slopes,
    slopes * normalised, slopes * dy, and slopes * dy * normalised.
    """
    x, weight, bias, mean, inverse, excitation = residuals
    scale = inverse * weight
    offset = bias - mean * scale

    def terms(x, dy):
        dy = dy.astype(jnp.float32)
        if blur:
            dy = jax.linear_transpose(blur_pool, jax.ShapeDtypeStruct(x.shape, jnp.float32))(dy)[0]
        return (x.astype(jnp.float32) - mean) * inverse, _slopes(x, scale, offset, slope), dy

    x, dy = jax.lax.optimization_barrier((x, cotangents[0]))
    normalised, slopes, dy_wide = terms(x, dy)
    dz = slopes * dy_wide  # still without the gate
    if excitation is None:
        dweight, dbias, dse_weights = (dz * normalised).sum(axis=_BATCH), dz.sum(axis=_BATCH), None
    else:
        se_weights, normalised_sum, slopes_sum, means, gate = excitation
        dz_normalised_sum, dz_sum = image_sums(dz * normalised, dz)
        _, pull = jax.vjp(squeeze_excite_gate, means, se_weights)
        dmeans, dse_weights = pull(weight * dz_normalised_sum + bias * dz_sum)
        dmeans = dmeans / (x.shape[1] * x.shape[2])
        dweight = (gate * dz_normalised_sum + dmeans * normalised_sum).sum(axis=0)
        dbias = (gate * dz_sum + dmeans * slopes_sum).sum(axis=0)
    x, dy, dweight, dbias = jax.lax.optimization_barrier((x, dy, dweight, dbias))  # the second pass
    normalised, slopes, dy_wide = terms(x, dy)
    if excitation is not None:
        dy_wide = dy_wide * gate[:, None, None] + dmeans[:, None, None]
    dz = slopes * dy_wide
    dx = scale * (dz - (dbias + normalised * dweight) / (x.size // x.shape[-1]))
    return dx.astype(x.dtype), dweight, dbias, dse_weights


norm_act.defvjp(_forward, _backward)


def moments(x: Array) -> tuple[Array, Array]:
    """Computes mean and biased variance, float32 `[C]`, of `x` `[B, H, W, C]`."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=_BATCH)
    if x.dtype == jnp.float32:
        mean += (wide - mean).mean(axis=_BATCH)  # corrects the rounding of large means
        return mean, jnp.square(wide - mean).mean(axis=_BATCH)
    # One pass over x is enough: the cancellation error is smaller than the rounding of x itself.
    return mean, jnp.maximum(jnp.square(wide).mean(axis=_BATCH) - jnp.square(mean), 0)


def image_sums(*arrays: Array) -> list[Array]:
    """Sums each array `[B, H, W, C]` over W, then over H. Returns arrays `[B, C]`.

    For few images, XLA would split one sum over both axes into several sums, and write the summands to memory.
    """
    rows = jax.lax.optimization_barrier([array.sum(axis=2) for array in arrays])
    return [row.sum(axis=1) for row in rows]


def _slopes(x: Array, scale: Array, offset: Array, slope: float) -> Array:
    """Returns the derivative of the leaky ReLU of `x * scale + offset`, float32 `[B, H, W, C]`."""
    return jnp.where(x.astype(jnp.float32) * scale + offset >= 0, 1.0, slope)
