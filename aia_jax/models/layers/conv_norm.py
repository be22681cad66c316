"""Convolution and batch norm in one module, so that each can be computed with the other in view."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from aia_jax.models.layers.batch_norm import BatchNorm
from aia_jax.models.layers.common import blur_pool
from aia_jax.models.layers.moments import image_moments, pool_moments, sums
from aia_jax.models.layers.norm_act_se import GateOptions, norm_act_gate
from aia_jax.models.layers.squeeze_excite import excite, gate_images

_kaiming_normal = initializers.variance_scaling(2.0, "fan_out", "normal", in_axis=-1, out_axis=0)


class SqueezeExcite(nnx.Module):
    """Scales each channel by a gate computed from the channels' global means (Hu et al., arXiv 1709.01507).

    In float32: two small products of means and weights, for which casting would take longer than computing.

    Attributes:
        fc1, fc2: linear layers, kernels `[C, R]` and `[R, C]`.
    """

    def __init__(self, fc1: nnx.Linear, fc2: nnx.Linear):
        self.fc1 = fc1
        self.fc2 = fc2

    def weights(self) -> tuple[Array, ...]:
        """Kernel and bias of the first layer, then of the second, float32."""
        arrays = (array for layer in (self.fc1, self.fc2) for array in (layer.kernel, layer.bias))
        return tuple(array[...].astype(jnp.float32) for array in arrays)

    def gate(self, means: Array) -> Array:
        """Means `[B, C]` to gates float32 `[B, C]`."""
        *weights, bias = self.weights()
        return jax.nn.sigmoid(excite(tuple(weights), means)[1] + bias)

    def __call__(self, x: Array) -> Array:
        """`x` `[B, H, W, C]`, gated."""
        gate = self.gate(x.mean(axis=(1, 2), dtype=jnp.float32))
        return (x * gate[:, None, None]).astype(x.dtype)


class Conv(nnx.Module):
    """Convolution of stride 1 without bias, padded to keep the size.

    Attributes:
        kernel: `[O, kh, kw, I]`, the order in which GPUs' convolutions read weights and write their gradients.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        shape = (out_features, kernel_size, kernel_size, in_features)
        self.kernel = nnx.Param(_kaiming_normal(rngs.params(), shape, param_dtype))

    def __call__(self, x: Array, *, scale: Array | None = None, bias: Array | None = None) -> Array:
        """`x` `[B, H, W, I]` to `[B, H, W, O]`; each output times `scale` `[O]`, plus `bias` `[O]`.

        The scale goes into the kernel, in float32. The bias has the compute dtype: cuDNN then adds it, and a shortcut,
        before it rounds what it writes.
        """
        kernel, x = self.kernel[...], x.astype(self.dtype)
        if scale is not None:
            kernel = kernel.astype(jnp.float32) * scale[:, None, None, None]
        if bias is None:
            return convolve(x, kernel)
        return _convolve_and_add(x, kernel, bias)


class FoldedConv(nnx.Module):
    """A convolution and the norm behind it as one, for evaluation alone.

    Args:
        conv, scale, bias: what `conv(x, scale=scale, bias=bias)` computes of `x`, this does too.

    Attributes:
        layout: of the kernel; "HWIO" on CPUs, where XLA would turn another round in each call, else "OHWI".
        kernel: in the compute dtype.
        bias: `[O]`, in the compute dtype.
    """

    def __init__(self, conv: Conv, scale: Array, bias: Array):
        self.dtype = conv.dtype
        self.layout = "HWIO" if jax.default_backend() == "cpu" else "OHWI"
        kernel = (conv.kernel[...].astype(jnp.float32) * scale[:, None, None, None]).astype(conv.dtype)
        self.kernel = nnx.Param(jnp.transpose(kernel, ["OHWI".index(axis) for axis in self.layout]))
        self.bias = nnx.Param(bias.astype(conv.dtype))

    def __call__(self, x: Array) -> Array:
        """`x` `[B, H, W, I]` to `[B, H, W, O]`."""
        return convolve(x.astype(self.dtype), self.kernel[...], self.layout) + self.bias[...]


def convolve(x: Array, kernel: Array, layout: str = "OHWI") -> Array:
    """`x` `[B, H, W, I]` by `kernel` of that layout, stride 1, padded to keep the size: `[B, H, W, O]`."""
    padding = [(kernel.shape[layout.index(axis)] // 2,) * 2 for axis in "HW"]

    def convolution(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", layout, "NHWC"))

    def product(x: Array, kernel: Array) -> Array:
        matrix = kernel.squeeze((layout.index("H"), layout.index("W")))
        return jax.lax.dot_general(x, matrix, (((3,), (layout.replace("HW", "").index("I"),)), ((), ())))

    kernel = kernel.astype(x.dtype)
    if padding == [(0, 0)] * 2:
        # On CPUs XLA is slower to convolve with 1x1 than to multiply by the same matrix.
        return jax.lax.platform_dependent(x, kernel, cpu=product, default=convolution)
    return convolution(x, kernel)


@jax.custom_vjp
def _convolve_and_add(x: Array, kernel: Array, bias: Array) -> Array:
    """Convolution and bias; the gradients of a 1x1 kernel and of the bias are not rounded to the dtype of `x`."""
    return convolve(x, kernel) + bias.astype(x.dtype)


def _convolve_and_add_forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve_and_add(x, kernel, bias), (x, kernel)


def _convolve_and_add_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    x, kernel = residuals
    rows = (0, 1, 2)
    dx, dkernel = jax.vjp(convolve, x, kernel)[1](dy)
    if kernel.shape[1:3] == (1, 1):
        product = jax.lax.dot_general(dy, x, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
        dkernel = product[:, None, None].astype(kernel.dtype)
    return dx, dkernel, sums((dy.astype(jnp.float32),), rows, taken_in=True)[0]


_convolve_and_add.defvjp(_convolve_and_add_forward, _convolve_and_add_backward)


class ConvNorm(nnx.Module):
    """Convolution of stride 1 without bias, padded to keep the size, then batch norm.

    In evaluation the norm is folded into the convolution. In training, with `input_statistics`, so it is too: the
    statistics of a 1x1 convolution's output follow from the covariance of its input, which is the smaller array where
    the convolution widens. What it gives before the norm is then never written, nor read by the backward pass.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        scale_init: initializers.Initializer = initializers.ones,
        input_statistics: bool = False,
        **options,
    ):
        if input_statistics and kernel_size != 1:
            raise ValueError(f"a {kernel_size}x{kernel_size} convolution's statistics do not follow from its input's")
        self.input_statistics = input_statistics
        self.conv = Conv(in_features, out_features, kernel_size, **options)
        self.bn = BatchNorm(out_features, scale_init=scale_init, **options)

    def __call__(self, x: Array, *, train: bool) -> Array:
        """`x` `[B, H, W, I]` to `[B, H, W, O]`."""
        if not train:
            return self._folded(x)
        if not self.input_statistics:
            return self.bn(self.conv(x), train=True)
        mean, var = linear_moments(x, self.conv.kernel[:, 0, 0].astype(jnp.float32))
        self.bn.update(mean, var, x.size // x.shape[-1])
        scale, offset = self.bn.affine(mean, var)
        return self.conv(x, scale=scale, bias=offset)

    def activated(
        self, x: Array, slope: float, *, train: bool, blur: bool = False, se: SqueezeExcite | None = None
    ) -> Array:
        """Convolution, norm and leaky ReLU, then blur pooling and squeeze-and-excitation where asked for."""
        if not train:
            y = jax.nn.leaky_relu(self._folded(x), slope)
            y = blur_pool(y) if blur else y
            return y if se is None else se(y)
        if se is not None and not blur:
            return self._gated(x, se, slope)
        y = self.bn(self.conv(x), train=True, slope=slope, blur=blur)
        if se is None:
            return y
        # Float32 runs are held against PyTorch's: the derivatives are autodiff's.
        return se(y) if self.bn.dtype == jnp.float32 else gate_images(y, se.weights())

    def gated(self, x: Array, se: SqueezeExcite, *, train: bool) -> Array:
        """Convolution, norm and squeeze-and-excitation."""
        if not train:
            return se(self._folded(x))
        if self.bn.dtype != jnp.float32:
            return self._gated(x, se, 1.0)
        # Float32 runs are held against PyTorch's: the derivatives are autodiff's.
        y = self.conv(x)
        means, variances = image_moments(y)
        mean, var = pool_moments(means, variances)
        self.bn.update(mean, var, y.size // y.shape[-1])
        scale, offset = self.bn.affine(mean, var)
        gate = se.gate(means * scale + offset)  # of the normalised means; the normalised array itself is not needed
        y = y * (scale * gate)[:, None, None] + (offset * gate)[:, None, None]
        return y.astype(x.dtype)

    def _gated(self, x: Array, se: SqueezeExcite, slope: float) -> Array:
        y = self.conv(x)
        options = GateOptions(slope, self.bn.epsilon)
        gated, mean, var = norm_act_gate(y, *self.bn.weights(), se.weights(), options)
        self.bn.update(mean, var, y.size // y.shape[-1])
        return gated.astype(self.bn.dtype)

    def fold(self) -> None:
        """Folds the norm into the convolution for good; from then on the module only evaluates."""
        self.conv, self.bn = FoldedConv(self.conv, *self.bn.affine()), None

    def _folded(self, x: Array) -> Array:
        if self.bn is None:
            return self.conv(x)
        scale, offset = self.bn.affine()
        return self.conv(x, scale=scale, bias=offset)


def linear_moments(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Mean and biased variance `[M]` of `x @ kernel.T` over all rows, from the first two moments of `x` alone.

    Args:
        x: `[..., K]`.
        kernel: float32 `[M, K]`.
    """
    centre = jnp.zeros(x.shape[-1], jnp.float32)
    if x.dtype == jnp.float32:
        # Another pass over x, so that E[y^2] - E[y]^2 does not cancel; bfloat16 rounds x by more than what cancels.
        centre = jax.lax.stop_gradient(x.mean(axis=tuple(range(x.ndim - 1))))
        x = x - centre
    mean, mean_square = _moments_of_products(x, kernel)
    return mean + (kernel * centre).sum(axis=1), jnp.maximum(mean_square - jnp.square(mean), 0)


@jax.custom_vjp
def _moments_of_products(x: Array, kernel: Array) -> tuple[Array, Array]:
    """E[k x] and E[(k x)^2] `[M]` over the rows of `x` `[..., K]`, for the rows k of `kernel` float32 `[M, K]`."""
    return _moments_of_products_forward(x, kernel)[0]


def _moments_of_products_forward(x, kernel):
    rows, share = tuple(range(x.ndim - 1)), x.shape[-1] / x.size
    precision = jax.lax.Precision.HIGHEST
    square = jax.lax.dot_general(
        x,
        x,
        ((rows, rows), ((), ())),
        precision if x.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    total = x.sum(axis=rows, dtype=jnp.float32)
    product = jnp.matmul(kernel, square, precision=precision) * share
    return ((kernel * total).sum(axis=1) * share, (kernel * product).sum(axis=1)), (x, total, product, kernel)


def _moments_of_products_backward(residuals, cotangents):
    x, total, product, kernel = residuals
    first, second = cotangents
    share = x.shape[-1] / x.size
    weighted = kernel * (2 * share * second)[:, None]
    dsquare = jnp.matmul(kernel.T.astype(x.dtype), weighted.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)
    dtotal = (kernel * (share * first)[:, None]).sum(axis=0)
    dkernel = (share * first)[:, None] * total + 2 * second[:, None] * product  # x x^T is symmetric
    return x @ dsquare + dtotal.astype(x.dtype), dkernel


_moments_of_products.defvjp(_moments_of_products_forward, _moments_of_products_backward)
