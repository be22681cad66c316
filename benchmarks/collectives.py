"""What the devices of a data-parallel training step must exchange, counted on paper from the shapes of the weights."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx

from aia_jax.models.annotator import Annotator
from aia_jax.models.attention_pooling import AttentionPooling
from aia_jax.models.layers.conv_norm import ConvNorm, SqueezeExcite
from aia_jax.models.tresnet import Bottleneck, TResNet

_FLOAT32 = 4


@dataclass(frozen=True)
class Exchanged:
    """Bytes that a device gives to sums over all devices, in one training step.

    Attributes:
        gradients: of the weights, in the dtype in which the backward pass computes them.
        norms_forward: statistics of batch norms.
        norms_backward: sums that the backward pass of batch norms needs; they contain the norms' own gradients.
        loss: the loss.
        waits: how often, at least, a step cannot go on before a norm's sums have arrived.
        awaited: bytes of what it waits for so: all that norms exchange, and those of `gradients` that a norm's backward
            pass is made of.
    """

    gradients: int
    norms_forward: int
    norms_backward: int
    loss: int
    waits: int
    awaited: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.gradients + self.norms_forward + self.norms_backward + self.loss


def exchanged(model: Annotator) -> Exchanged:
    """The count for a model, of whose arrays only shapes and dtypes are read (`nnx.eval_shape` will do).

    Convolutions and linear layers give gradients of the compute dtype: sums over devices are taken before they become
    float32. Squeeze-and-excitation, norms, the scores, and convolutions whose norm knows their input's statistics give
    float32.

    Raises:
        ValueError: the model is no TResNet with an attention head without self-attention, or its backbone is frozen.
    """
    backbone, head = model.backbone, model.head
    if not isinstance(backbone, TResNet) or not isinstance(head, AttentionPooling):
        raise ValueError("only TResNet with the attention head is counted")
    if head.self_attention or model.freeze_backbone:
        raise ValueError("self-attention and frozen backbones are not counted")
    item = jnp.dtype(backbone.dtype).itemsize
    gradients = forward = backward = waits = widening = 0
    for _, module in nnx.iter_modules(backbone):
        if isinstance(module, SqueezeExcite):
            gradients += _FLOAT32 * _size(module)
        if isinstance(module, ConvNorm):
            norm = _of_norm(module)
            gradients += (_FLOAT32 if module.input_statistics else item) * module.conv.kernel.size
            widening += _FLOAT32 * module.conv.kernel.size * module.input_statistics
            forward, backward, waits = forward + norm[0], backward + norm[1], waits + 2
        if isinstance(module, Bottleneck) and module.downsample and module.downsample.input_statistics:
            backward -= _FLOAT32 * module.conv3.conv.kernel.shape[0]  # both offsets have the same gradient
    awaited = forward + backward + widening
    return Exchanged(gradients + _of_head(head), forward, backward, _FLOAT32, waits, awaited)


def _of_norm(module: ConvNorm) -> tuple[int, int]:
    """Bytes forward and backward of the norm after a convolution of M outputs and K inputs."""
    outputs, inputs = module.conv.kernel.shape[0], module.conv.kernel.shape[-1]
    if module.input_statistics:
        # Forward the sums of x and of x x^T. Backward the gradients of the folded kernel, which are among the weights',
        # and of the folded offset.
        return _FLOAT32 * inputs * (inputs + 1), _FLOAT32 * outputs
    return _FLOAT32 * 2 * outputs, _FLOAT32 * 2 * outputs


def _of_head(head: AttentionPooling) -> int:
    """Bytes of the head's gradients. The first layer's queries are the same for every image: their gradient is summed
    over the devices, and each device then computes those of the weights before them by itself."""
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
