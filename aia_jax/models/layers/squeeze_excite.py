"""Squeeze-and-excitation (Hu et al., arXiv 1709.01507)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from aia_jax.models.layers.common import kaiming_normal, relu, torch_linear

# Float32 weights for C channels and R hidden units: kernel `[C, R]`, bias `[R]`, then kernel `[R, C]`, bias `[C]`.
SEWeights = tuple[Array, Array, Array, Array]


def squeeze_excite_gate(means: Array, weights: SEWeights) -> Array:
    """Computes the gate of each channel, `[B, C]`, from the channel means `[B, C]`, in float32."""
    kernel1, bias1, kernel2, bias2 = weights
    return jax.nn.sigmoid(relu(means @ kernel1 + bias1) @ kernel2 + bias2)


class SqueezeExcite(nnx.Module):
    """Squeeze-and-excitation as a layer, computed in float32.

    Attributes:
        fc1, fc2: linear layers with kernels `[C, R]` and `[R, C]`, for C channels and R hidden units.
    """

    def __init__(self, num_features: int, num_reduced: int, **options):
        options |= {"dtype": jnp.float32, "kernel_init": kaiming_normal}
        self.fc1 = torch_linear(num_features, num_reduced, **options)
        self.fc2 = torch_linear(num_reduced, num_features, **options)

    def weights(self) -> SEWeights:
        """Returns the weights of both layers in float32."""
        arrays = (self.fc1.kernel, self.fc1.bias, self.fc2.kernel, self.fc2.bias)
        return tuple(array[...].astype(jnp.float32) for array in arrays)

    def __call__(self, x: Array) -> Array:
        """Multiplies each channel of `x` `[B, H, W, C]` by its gate."""
        gate = squeeze_excite_gate(x.mean(axis=(1, 2), dtype=jnp.float32), self.weights())
        return (x * gate[:, None, None]).astype(x.dtype)
