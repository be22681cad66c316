"""Estimates the data that devices exchange in a data-parallel training step from the shapes of the weights."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx

from aia_jax.models.annotator import Annotator
from aia_jax.models.attention_pooling import AttentionPooling
from aia_jax.models.layers.conv_norm import ConvNorm
from aia_jax.models.layers.squeeze_excite import SqueezeExcite
from aia_jax.models.tresnet import TResNet

_FLOAT32 = 4


@dataclass(frozen=True)
class CollectiveBytes:
    """Bytes that one device sends to all-reduces in one training step.

    Attributes:
        gradients: gradients of the weights, in the dtype in which the backward pass computes them.
        norms_forward: batch-norm statistics.
        norms_backward: sums for the backward pass of batch norms; they include the norms' own gradients.
        loss: the loss.
        waits: the minimum number of times that a step must wait for the sums of a norm.
        awaited: bytes of the sums that a step waits for: `norms_forward`, `norms_backward`, and those `gradients` that
            the backward pass of a norm needs.
    """

    gradients: int
    norms_forward: int
    norms_backward: int
    loss: int
    waits: int
    awaited: int

    @property
    def bytes(self) -> int:
        """The total."""
        return self.gradients + self.norms_forward + self.norms_backward + self.loss


def count_bytes(model: Annotator) -> CollectiveBytes:
    """Counts the bytes for a model. Only shapes and dtypes are read, so a model of `nnx.eval_shape` is enough.

    Convolutions and linear layers have gradients in the compute dtype: their sum over devices precedes the conversion
    to float32. Squeeze-and-excitation, norms, scores, and convolutions whose norm uses the statistics of their input
    have gradients in float32.

    Raises:
        ValueError: the model is not a TResNet with an attention head without self-attention, or its backbone is frozen.
    """
    backbone, head = model.backbone, model.head
    if not isinstance(backbone, TResNet) or not isinstance(head, AttentionPooling):
        raise ValueError("only a TResNet with the attention head can be counted")
    if head.self_attention or model.freeze_backbone:
        raise ValueError("self-attention and frozen backbones cannot be counted")
    item = jnp.dtype(backbone.dtype).itemsize
    gradients = forward = backward = waits = widening = 0
    for _, module in nnx.iter_modules(backbone):
        if isinstance(module, SqueezeExcite):
            gradients += _FLOAT32 * _size(module)
        if isinstance(module, ConvNorm):
            norm = _norm_bytes(module)
            gradients += (_FLOAT32 if module.input_statistics else item) * module.conv.kernel.size
            widening += _FLOAT32 * module.conv.kernel.size * module.input_statistics
            forward, backward, waits = forward + norm[0], backward + norm[1], waits + 2
    awaited = forward + backward + widening
    return CollectiveBytes(gradients + _head_bytes(head), forward, backward, _FLOAT32, waits, awaited)


def _norm_bytes(module: ConvNorm) -> tuple[int, int]:
    """Bytes, forward and backward, of the norm after a convolution with M outputs and K inputs."""
    outputs, inputs = module.conv.kernel.shape[0], module.conv.kernel.shape[-1]
    if module.input_statistics:
        # Forward: the sums of x and of x x^T. Backward: the gradient of the folded offset; that of the folded kernel is
        # counted with the weights.
        return _FLOAT32 * inputs * (inputs + 1), _FLOAT32 * outputs
    return _FLOAT32 * 2 * outputs, _FLOAT32 * 2 * outputs


def _head_bytes(head: AttentionPooling) -> int:
    """Bytes of the head's gradients.

    The queries of the first layer are equal for all images. Devices sum the gradient of the queries, and each device
    computes the gradients of the weights before them from this sum.
    """
    item = jnp.dtype(head.dtype).itemsize
    labels, hidden = head.weight.shape
    total = item * (_size(head.projection) + labels * hidden) + _FLOAT32 * (_size(head.norm) + labels * (hidden + 1))
    for index, layer in enumerate(head.layers):
        attention = layer.cross_attention
        dense = [attention.key, attention.value, attention.out, layer.linear1, layer.linear2]
        norms = [layer.norm3]
        if index > 0:
            dense.append(attention.query)
        if index > 0 or not layer.norm_first:
            norms.append(layer.norm2)
        total += item * sum(map(_size, dense)) + _FLOAT32 * sum(map(_size, norms))
    return total


def _size(module: nnx.Module) -> int:
    leaves: list[Any] = nnx.to_flat_state(nnx.state(module, nnx.Param)).leaves
    return sum(math.prod(leaf.shape) for leaf in leaves)
