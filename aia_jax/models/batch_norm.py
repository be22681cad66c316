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
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from aia_jax.models.layers import blur_pool, excite


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
            y, mean, var = norm_act(x, *self._weights(), slope, self.epsilon, blur)
            self.update(mean, var, x.size // x.shape[-1])
        else:
            y = _act(x, *self.affine(), slope, blur)
        return y.astype(self.dtype)

    def gated(self, x: Array, gate_weights: tuple[Array, ...], slope: float) -> Array:
        """In training: normalises, applies leaky ReLU and squeeze-and-excitation with the weights of `excite`."""
        y, mean, var = norm_act_gate(x, *self._weights(), gate_weights, slope, self.epsilon)
        self.update(mean, var, x.size // x.shape[-1])
        return y.astype(self.dtype)

    def affine(self, mean: Array | None = None, var: Array | None = None) -> tuple[Array, Array]:
        """Scale and offset `[C]` float32 that normalise with these statistics; without any, with the running ones."""
        if mean is None or var is None:
            mean, var = self.mean[...], self.var[...]
        weight, bias = self._weights()
        scale = jax.lax.rsqrt(var + self.epsilon) * weight
        return scale, bias - mean * scale

    def folded_into(self, kernel: Array) -> tuple[Array, Array]:
        """The convolution that does alone what one with `kernel` `[..., C]` and then this norm do in evaluation.

        Returns:
            Its kernel `[..., C]` and its bias `[C]`, both float32.
        """
        scale, offset = self.affine()
        return kernel.astype(jnp.float32) * scale, offset

    def _weights(self) -> tuple[Array, Array]:
        return self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)

    def update(self, mean: Array, var: Array, count: int) -> None:
        """Moves the running statistics towards the mean and biased variance `[C]` of `count` positions."""
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] += self.momentum * (jax.lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += self.momentum * (jax.lax.stop_gradient(unbiased) - self.var[...])


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
    total, square = _sums((x, jnp.square(x)), (0, 1, 2))
    mean = total / count
    return mean, jnp.maximum(square / count - jnp.square(mean), 0)


def _sums(arrays: tuple[Array, ...], axes: tuple[int, ...]) -> tuple[Array, ...]:
    """Sums of equally shaped float32 arrays over the same axes; one reduction on GPUs, several for XLA's CPU.

    Where a mesh is set, axis 0 is split over all its devices: each sums what it has, and they add up the results.
    Left to itself, XLA would gather the results of one reduction of several arrays from all devices to all.
    """

    def separate(*arrays: Array) -> tuple[Array, ...]:
        return tuple(array.sum(axis=axes) for array in arrays)

    def together(*arrays: Array) -> tuple[Array, ...]:
        zeros = tuple(jnp.zeros((), jnp.float32) for _ in arrays)
        return tuple(jax.lax.reduce(arrays, zeros, lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)), axes))

    def local(*arrays: Array) -> tuple[Array, ...]:
        return jax.lax.platform_dependent(*arrays, cuda=together, default=separate)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or 0 not in axes:
        return local(*arrays)
    everywhere = functools.partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec(mesh.axis_names))
    return everywhere(lambda *parts: jax.lax.psum(local(*parts), mesh.axis_names), out_specs=PartitionSpec())(*arrays)


def _act(x: Array, scale: Array, offset: Array, slope: float, blur: bool) -> Array:
    y = jax.nn.leaky_relu(x.astype(jnp.float32) * scale + offset, slope)
    return (blur_pool(y) if blur else y).astype(x.dtype)


def _back_through_act(
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
    y = _act(x, scale, bias - mean * scale, slope, blur)
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
        return *_back_through_act(x, scale, offset, slope, (dy,)), (x.astype(jnp.float32) - mean) * inverse

    # The barriers make XLA compute the parts again in each pass; it would write them to memory and read them instead.
    x = jax.lax.optimization_barrier(x)
    dz, normalised = parts(x, dy)
    dbias, dweight = _sums((dz, dz * normalised), (0, 1, 2))
    x, dy, dbias, dweight = jax.lax.optimization_barrier((x, dy, dbias, dweight))
    dz, normalised = parts(x, dy)
    dx = scale * (dz - (dbias + normalised * dweight) / math.prod(x.shape[:3]))
    return dx.astype(x.dtype), dweight, dbias


norm_act.defvjp(_norm_act_forward, _norm_act_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def norm_act_gate(
    x: Array, weight: Array, bias: Array, gate_weights: tuple[Array, ...], slope: float, epsilon: float
) -> tuple[Array, Array, Array]:
    """Batch norm, leaky ReLU and squeeze-and-excitation, all in training.

    Args and returns: as of `norm_act`; `gate_weights` are those of `excite`.
    """
    return _norm_act_gate_forward(x, weight, bias, gate_weights, slope, epsilon)[0]


def _norm_act_gate_forward(x, weight, bias, gate_weights, slope, epsilon):
    mean, var = moments(x)
    inverse = jax.lax.rsqrt(var + epsilon)
    scale = inverse * weight
    offset = bias - mean * scale
    means = (_act(x.astype(jnp.float32), scale, offset, slope, False) * (1 / _positions(x))).sum(axis=(1, 2))
    again, excited = jax.lax.optimization_barrier((x, excite(gate_weights[:3], means)))
    gate = jax.nn.sigmoid(excited + gate_weights[3])
    y = _act(again.astype(jnp.float32), scale, offset, slope, False) * gate[:, None, None]
    return (y.astype(x.dtype), mean, var), (x, weight, bias, gate_weights, mean, inverse, means, gate)


def _norm_act_gate_backward(slope, epsilon, residuals, cotangents):
    x, weight, bias, gate_weights, mean, inverse, means, gate = residuals
    dy = cotangents[0]
    scale = inverse * weight
    offset = bias - mean * scale
    x, one = jax.lax.optimization_barrier((x, jnp.float32(1)))
    normalised = (x.astype(jnp.float32) - mean) * inverse
    da, slopes = _back_through_act(x, scale, offset, slope, (dy.astype(jnp.float32), one))
    # The activation is slopes * (weight * normalised + bias), so four sums over each image hold all that is needed.
    rows = _sums((da * normalised, da, slopes * normalised, slopes), (2,))
    da_normalised, da, slopes_normalised, slopes = _sums(rows, (1,))
    dexcited = (weight * da_normalised + bias * da) * gate * (1 - gate)
    dgate_weights, dmeans = jax.vjp(excite, gate_weights[:3], means)[1](dexcited)
    dmeans = dmeans / _positions(x)
    dweight, dbias = _sums((gate * da_normalised + dmeans * slopes_normalised, gate * da + dmeans * slopes), (0,))
    x, dy, dweight, dbias, dmeans = jax.lax.optimization_barrier((x, dy, dweight, dbias, dmeans))
    da = dy.astype(jnp.float32) * gate[:, None, None] + dmeans[:, None, None]
    (dz,) = _back_through_act(x, scale, offset, slope, (da,))
    normalised = (x.astype(jnp.float32) - mean) * inverse
    dx = scale * (dz - (dbias + normalised * dweight) / math.prod(x.shape[:3]))
    return dx.astype(x.dtype), dweight, dbias, (*dgate_weights, dexcited.sum(axis=0))


norm_act_gate.defvjp(_norm_act_gate_forward, _norm_act_gate_backward)


def _positions(x: Array) -> int:
    return x.shape[1] * x.shape[2]
