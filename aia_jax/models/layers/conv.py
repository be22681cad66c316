"""Convolutions of stride 1 that keep height and width."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

_kaiming_normal = initializers.variance_scaling(2.0, "fan_out", "normal", in_axis=-1, out_axis=0)


class Conv(nnx.Module):
    """Convolution of stride 1 without bias, padded to keep height and width.

    Attributes:
        kernel: `[O, kh, kw, I]` for I input and O output channels. Convolutions on GPUs use this axis order.
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
        """Convolves `x` `[B, H, W, I]` to `[B, H, W, O]`, multiplies by `scale` `[O]` and adds `bias` `[O]`.

        `scale` multiplies the kernel in float32. `bias` is added in the layer's `dtype`, so that cuDNN can fuse it.
        """
        kernel, x = self.kernel[...], x.astype(self.dtype)
        if scale is not None:
            kernel = kernel.astype(jnp.float32) * scale[:, None, None, None]
        y = convolve(x, kernel)
        return y if bias is None else y + bias.astype(self.dtype)


class FoldedConv(nnx.Module):
    """Replaces a convolution and its batch norm in evaluation. Computes `conv(x, scale=scale, bias=bias)`.

    Args:
        conv: the convolution.
        scale, bias: `[O]`, the factor and the offset of the batch norm.

    Attributes:
        layout: axis order of `kernel`: "HWIO" on CPUs, where XLA would transpose other orders, and "OHWI" elsewhere.
        kernel: the kernel of `conv` times `scale`, in the dtype of `conv`.
        bias: `[O]`, in the dtype of `conv`.
    """

    def __init__(self, conv: Conv, scale: Array, bias: Array):
        self.dtype = conv.dtype
        self.layout = "HWIO" if jax.default_backend() == "cpu" else "OHWI"
        kernel = (conv.kernel[...].astype(jnp.float32) * scale[:, None, None, None]).astype(conv.dtype)
        self.kernel = nnx.Param(jnp.transpose(kernel, ["OHWI".index(axis) for axis in self.layout]))
        self.bias = nnx.Param(bias.astype(conv.dtype))

    def __call__(self, x: Array) -> Array:
        """Convolves `x` `[B, H, W, I]` to `[B, H, W, O]`."""
        return convolve(x.astype(self.dtype), self.kernel[...], self.layout) + self.bias[...]


def convolve(x: Array, kernel: Array, layout: str = "OHWI") -> Array:
    """Convolves `x` `[B, H, W, I]` to `[B, H, W, O]` with stride 1, padded to keep height and width."""
    padding = [(kernel.shape[layout.index(axis)] // 2,) * 2 for axis in "HW"]

    def convolution(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", layout, "NHWC"))

    def product(x: Array, kernel: Array) -> Array:
        matrix = kernel.squeeze((layout.index("H"), layout.index("W")))
        return matrix_product(x, matrix.T if layout == "OHWI" else matrix)

    kernel = kernel.astype(x.dtype)
    if padding == [(0, 0)] * 2:
        # On CPUs, XLA multiplies matrices faster than it computes 1x1 convolutions.
        return jax.lax.platform_dependent(x, kernel, cpu=product, default=convolution)
    return convolution(x, kernel)


@jax.custom_vjp
def matrix_product(x: Array, matrix: Array) -> Array:
    """Multiplies `x` `[B, H, W, I]` by `matrix` `[I, O]`. Its gradient is fast on CPUs."""
    return x @ matrix


def _matrix_product_gradients(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Computes the gradient of the matrix in a loop over parts of the rows, because XLA stores the inputs of a loop.

    Otherwise, XLA transposes `x` or `dy`, and for this computes it a second time, in a slow order, with all that it
    depends on, such as the sums of all shortcuts of a stage.
    """
    x, matrix = residuals
    height = x.shape[1]
    parts = next((n for n in range(2, height + 1) if height % n == 0), 1)

    def add_part(index: Array, total: Array) -> Array:
        rows = [jax.lax.dynamic_slice_in_dim(array, index * (height // parts), height // parts, 1) for array in (x, dy)]
        return total + jnp.einsum("bhwi,bhwo->io", *rows, preferred_element_type=total.dtype)

    zeros = jnp.zeros(matrix.shape, jnp.promote_types(x.dtype, jnp.float32))
    return dy @ matrix.T, jax.lax.fori_loop(0, parts, add_part, zeros).astype(matrix.dtype)


matrix_product.defvjp(lambda x, matrix: (x @ matrix, (x, matrix)), _matrix_product_gradients)
