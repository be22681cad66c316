"""Computes the statistics of a 1x1 convolution's output from the convolution's input.

The convolution is y = W a, with kernel W and input a. The means of y are W E[a], and the mean squares of y are
diag(W E[a a^T] W^T). If the convolution has more outputs than inputs, a is smaller than y. The statistics are known
before y is computed. Therefore, batch norm can be folded into W, and the values before batch norm are never stored.
"""

import jax
import jax.numpy as jnp
from jax import Array

from aia_jax.models.layers.batch_norm import BatchNorm
from aia_jax.models.layers.conv import convolve


def fold_and_convolve(x: Array, kernel: Array, norm: BatchNorm) -> Array:
    """Applies a 1x1 convolution and a batch norm in training as one convolution. Updates the running statistics.

    Args:
        x: `[B, H, W, I]`.
        kernel: `[O, 1, 1, I]`.
        norm: batch norm of the O outputs.
    """
    x, kernel = x.astype(norm.dtype), kernel.astype(jnp.float32)
    mean, var = linear_moments(x.reshape(-1, x.shape[-1]), kernel[:, 0, 0])
    norm.update(mean, var, x.size // x.shape[-1])
    scale, offset = norm.affine(mean, var)
    return _convolve_and_add(x, kernel * scale[:, None, None, None], offset)


@jax.custom_vjp
def _convolve_and_add(x: Array, kernel: Array, bias: Array) -> Array:
    """Convolves with a float32 1x1 kernel and adds a float32 bias. The result has the dtype of `x`.

    The gradients of kernel and bias stay float32, because the code that uses them adds terms that nearly cancel.
    """
    return convolve(x, kernel) + bias.astype(x.dtype)


def _convolve_and_add_forward(x, kernel, bias):
    return _convolve_and_add(x, kernel, bias), (x, kernel)


def _convolve_and_add_backward(residuals, dy):
    x, kernel = residuals
    dx, _ = jax.vjp(convolve, x, kernel)[1](dy)
    dkernel = jnp.einsum("bhwo,bhwi->oi", dy, x, preferred_element_type=jnp.float32)
    return dx, dkernel[:, None, None], dy.sum(axis=(0, 1, 2), dtype=jnp.float32)


_convolve_and_add.defvjp(_convolve_and_add_forward, _convolve_and_add_backward)


def linear_moments(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Computes mean and biased variance `[M]` over the rows of `x @ kernel.T` for `x` `[N, K]`, `kernel` `[M, K]`."""
    mean, mean_square = _moments_of_products(x, kernel)
    return mean, jnp.maximum(mean_square - jnp.square(mean), 0)


@jax.custom_vjp
def _moments_of_products(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Computes E[W x] and E[(W x)^2] `[M]` over the rows of `x` `[N, K]`, for the kernel W `[M, K]`."""
    return _moments_of_products_forward(x, kernel)[0]


def _moments_of_products_forward(x, kernel):
    mean = x.mean(axis=0, dtype=jnp.float32)
    square = jnp.matmul(x.T, x, preferred_element_type=jnp.float32) / len(x)  # E[x x^T]
    product = jnp.matmul(kernel, square, precision=jax.lax.Precision.HIGHEST)
    return ((kernel * mean).sum(axis=1), (kernel * product).sum(axis=1)), (x, kernel, mean, product)


def _moments_of_products_backward(residuals, cotangents):
    """Casts the gradient of E[x x^T], W^T diag(dsquare) W, to the dtype of `x`. This halves the next product's cost."""
    x, kernel, mean, product = residuals
    dmean, dsquare = (cotangent[:, None] for cotangent in cotangents)
    dcovariance = kernel.astype(x.dtype).T @ (kernel * dsquare * (2 / len(x))).astype(x.dtype)
    dx = x @ dcovariance + ((kernel * dmean).sum(axis=0) / len(x)).astype(x.dtype)
    return dx, dmean * mean + 2 * dsquare * product


_moments_of_products.defvjp(_moments_of_products_forward, _moments_of_products_backward)
