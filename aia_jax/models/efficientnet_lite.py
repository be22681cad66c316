"""EfficientNet-Lite: EfficientNet (Tan & Le, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6.

Layers and widths equal those of TensorFlow's `efficientnet/lite` and timm's `tf_efficientnet_lite`. This code has no
drop connect: unlike TensorFlow and timm, it never skips a block at random in training.

Padding is 'same'. At stride 2, the number of zeros before and after the image depends on the image size. TensorFlow and
timm use the size of each image. efficientnet_lite_pytorch always uses the image size of the pretraining, so that
features and pixels are aligned in the same way at every image size.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from aia_jax.models.layers.batch_norm import BatchNorm
from aia_jax.models.layers.common import run_blocks
from aia_jax.models.layers.conv import matrix_product
from aia_jax.utils.errors import InputError

STEM_FEATURES = 32
HEAD_FEATURES = 1280


@dataclass(frozen=True)
class Variant:
    """Size of an EfficientNet-Lite.

    Attributes:
        width: factor for the number of channels of every stage. The stem and the head are not scaled.
        depth: factor for the number of blocks of every stage except the first and the last.
        resolution: height and width in pixels of the images that the published weights were trained on.
    """

    width: float
    depth: float
    resolution: int


VARIANTS = {
    "0": Variant(width=1.0, depth=1.0, resolution=224),
    "1": Variant(width=1.0, depth=1.1, resolution=240),
    "2": Variant(width=1.1, depth=1.2, resolution=260),
}


@dataclass(frozen=True)
class Stage:
    """Sizes of a stage before scaling. Only the first block has this stride, and changes the channel count."""

    blocks: int
    kernel_size: int
    stride: int
    expand_ratio: int
    features: int


STAGES = (
    Stage(blocks=1, kernel_size=3, stride=1, expand_ratio=1, features=16),
    Stage(blocks=2, kernel_size=3, stride=2, expand_ratio=6, features=24),
    Stage(blocks=2, kernel_size=5, stride=2, expand_ratio=6, features=40),
    Stage(blocks=3, kernel_size=3, stride=2, expand_ratio=6, features=80),
    Stage(blocks=3, kernel_size=5, stride=1, expand_ratio=6, features=112),
    Stage(blocks=4, kernel_size=5, stride=2, expand_ratio=6, features=192),
    Stage(blocks=1, kernel_size=3, stride=1, expand_ratio=6, features=320),
)


class SameConv(nnx.Module):
    """Full or depthwise convolution with 'same' padding and without bias.

    Args:
        nominal: height and width that determine the padding. None: those of the input.

    Attributes:
        kernel: `[k, k, in_features, out_features]`, or `[k, k, 1, out_features]` for a depthwise convolution.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        nominal: int | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.depthwise = depthwise
        self.nominal = nominal
        self.dtype = dtype
        # As in EfficientNet, the fan-out is that of one group. A depthwise filter has one output channel.
        fan_out = kernel_size**2 * (1 if depthwise else out_features)
        shape = (kernel_size, kernel_size, 1 if depthwise else in_features, out_features)
        self.kernel = nnx.Param(initializers.normal((2 / fan_out) ** 0.5)(rngs.params(), shape, param_dtype))

    def __call__(self, x: Array, kernel: Array | None = None) -> Array:
        """Maps `[B, H, W, in_features]` to `[B, h, w, out_features]`. Without `nominal`, h is ceil(H / stride).

        Args:
            kernel: a kernel to use instead of the layer's own kernel.
        """
        kernel = (self.kernel[...] if kernel is None else kernel).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.depthwise:
            # XLA's grouped convolution is slow on CPUs, but not on other devices.
            shifted = partial(shifted_depthwise_conv, stride=self.stride, nominal=self.nominal)
            grouped = partial(_same_conv, stride=self.stride, nominal=self.nominal, groups=x.shape[-1])
            return jax.lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)
        if kernel.shape[:2] == (1, 1) and self.stride == 1:
            # On CPUs, XLA multiplies matrices faster than it computes 1x1 convolutions.
            return matrix_product(x, kernel[0, 0])
        return _same_conv(x, kernel, self.stride, self.nominal)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted_depthwise_conv(x: Array, kernel: Array, stride: int, nominal: int | None = None) -> Array:
    """A depthwise convolution as a float32 sum of shifted inputs, which XLA fuses into one loop.

    Args:
        x: `[B, H, W, C]`.
        kernel: `[k, k, 1, C]`.
        stride, nominal: see `SameConv`.
    """
    (height, pad_height), (width, pad_width) = _sides(x, kernel, stride, nominal)
    padded = jnp.pad(x, ((0, 0), pad_height, pad_width, (0, 0)))
    return _weighted_sum(padded, kernel, height, width, stride)


def _depthwise_gradients(
    stride: int, nominal: int | None, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    """Computes the gradients of `shifted_depthwise_conv`, that of the kernel in a loop over the rows of `dy`.

    Autodiff would write k * k arrays of the size of `x` to memory.
    """
    x, kernel = residuals
    (height, pad_height), (width, pad_width) = _sides(x, kernel, stride, nominal)
    size = kernel.shape[0]

    def spread(side: int, out_side: int, before: int) -> tuple[int, int, int]:
        """Returns the zeros around and between the rows of `dy`, so that its convolution has the side of `x`."""
        low = size - 1 - before
        return low, side + size - 1 - low - ((out_side - 1) * stride + 1), stride - 1

    edges = (0, 0, 0), spread(x.shape[1], height, pad_height[0]), spread(x.shape[2], width, pad_width[0]), (0, 0, 0)
    spread_dy = jax.lax.pad(dy, jnp.zeros((), dy.dtype), edges)
    dx = _weighted_sum(spread_dy, kernel[::-1, ::-1], *x.shape[1:3], 1)
    padded = jnp.pad(x, ((0, 0), pad_height, pad_width, (0, 0)))

    def add_row(row: Array, totals: list[Array]) -> list[Array]:
        rows = jax.lax.dynamic_slice_in_dim(padded, row * stride, size, 1).astype(jnp.float32)
        dy_row = jax.lax.dynamic_slice_in_dim(dy, row, 1, 1).astype(jnp.float32)
        shifted = (_shifted(rows, *place, 1, width, stride) for place in np.ndindex(size, size))
        return [total + x * dy_row for total, x in zip(totals, shifted, strict=True)]

    zeros = [jnp.zeros((x.shape[0], 1, width, x.shape[-1]))] * size**2
    dkernel = jnp.stack([total.sum((0, 1, 2)) for total in jax.lax.fori_loop(0, height, add_row, zeros)])
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


shifted_depthwise_conv.defvjp(
    lambda x, kernel, stride, nominal: (shifted_depthwise_conv(x, kernel, stride, nominal), (x, kernel)),
    _depthwise_gradients,
)


def _weighted_sum(padded: Array, kernel: Array, height: int, width: int, stride: int) -> Array:
    """Sums, in float32, the inputs that each place in the kernel sees, times the kernel at that place."""
    total = jnp.zeros((), jnp.float32)
    for row, column in np.ndindex(kernel.shape[:2]):
        shifted = _shifted(padded, row, column, height, width, stride).astype(jnp.float32)
        total += shifted * kernel[row, column, 0].astype(jnp.float32)
    return total.astype(padded.dtype)


def _shifted(x: Array, row: int, column: int, height: int, width: int, stride: int) -> Array:
    rows = slice(row, row + (height - 1) * stride + 1, stride)
    return x[:, rows, column : column + (width - 1) * stride + 1 : stride]


def _sides(x: Array, kernel: Array, stride: int, nominal: int | None) -> list[tuple[int, tuple[int, int]]]:
    """Returns `_same_padding` of height and width."""
    return [_same_padding(side, kernel.shape[0], stride, nominal) for side in x.shape[1:3]]


def _same_padding(side: int, size: int, stride: int, nominal: int | None = None) -> tuple[int, tuple[int, int]]:
    """Returns the output side and the numbers of zeros (before, after). If the total is odd, `after` is larger by 1."""
    padded_for = nominal or side
    zeros = max((-(-padded_for // stride) - 1) * stride + size - padded_for, 0)
    return (side + zeros - size) // stride + 1, (zeros // 2, zeros - zeros // 2)


def _same_conv(x: Array, kernel: Array, stride: int, nominal: int | None = None, groups: int = 1) -> Array:
    padding = [_same_padding(side, kernel.shape[0], stride, nominal)[1] for side in x.shape[1:3]]
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=layout, feature_group_count=groups
    )


class SameConvNorm(nnx.Module):
    """Convolution with 'same' padding, then batch norm with the epsilon and momentum of EfficientNet."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        nominal: int | None = None,
        **options,
    ):
        conv = {"stride": stride, "depthwise": depthwise, "nominal": nominal}
        self.conv = SameConv(in_features, out_features, kernel_size, **conv, **options)
        self.bn = BatchNorm(out_features, momentum=0.01, epsilon=1e-3, **options)

    def __call__(self, x: Array, *, train: bool) -> Array:
        return self.bn(self.conv(x), train=True) if train else self._folded(x)

    def fold(self) -> None:
        """Folds the norm into the convolution. After this, the module cannot be trained."""
        scale, offset = self.bn.affine()
        self.conv.kernel = nnx.Param((self.conv.kernel[...].astype(jnp.float32) * scale).astype(self.conv.dtype))
        self.bias, self.bn = nnx.Param(offset), None

    def _folded(self, x: Array) -> Array:
        if self.bn is None:
            return self.conv(x) + self.bias[...].astype(self.conv.dtype)
        scale, offset = self.bn.affine()
        kernel = self.conv.kernel[...].astype(jnp.float32) * scale
        return self.conv(x, kernel) + offset.astype(self.conv.dtype)


class MBConv(nnx.Module):
    """Inverted residual (arXiv 1801.04381): expansion, depthwise convolution and projection.

    The block has a shortcut if the shapes of input and output are equal.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_size: int,
        stride: int,
        expand_ratio: int,
        nominal: int | None = None,
        **options,
    ):
        hidden = in_features * expand_ratio
        self.has_shortcut = stride == 1 and in_features == out_features
        self.expand = SameConvNorm(in_features, hidden, 1, **options) if expand_ratio > 1 else None
        self.depthwise = SameConvNorm(
            hidden, hidden, kernel_size, stride=stride, depthwise=True, nominal=nominal, **options
        )
        self.project = SameConvNorm(hidden, out_features, 1, **options)

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = x if self.expand is None else jax.nn.relu6(self.expand(x, train=train))
        y = jax.nn.relu6(self.depthwise(y, train=train))
        y = self.project(y, train=train)
        return x + y if self.has_shortcut else y


class EfficientNetLite(nnx.Module):
    """The body of an EfficientNet-Lite, without pooling or classifier. Maps normalised images to features.

    Attributes:
        num_features: channels of the features.
        stride: distance in image pixels between two feature positions.
    """

    num_features = HEAD_FEATURES
    stride = 32

    def __init__(self, variant: str, *, native_padding: bool = True, remat: bool = False, **options):
        """Builds a variant of `VARIANTS`.

        Args:
            native_padding: True computes the padding for the variant's resolution, as efficientnet_lite_pytorch does.
                False computes the padding for the size of each image, as TensorFlow and timm do.
            remat: see `run_blocks`.
            options: `dtype`, `param_dtype` and `rngs`, as for `nnx.Linear`.
        """
        self.remat = remat
        scaling = VARIANTS[variant]
        nominal = scaling.resolution if native_padding else None
        self.stem = SameConvNorm(3, STEM_FEATURES, 3, stride=2, nominal=nominal, **options)
        self.stages = nnx.List([])
        features, nominal = STEM_FEATURES, nominal and -(-nominal // 2)
        for index, stage in enumerate(STAGES):
            depth = scaling.depth if 0 < index < len(STAGES) - 1 else 1
            out_features = _round_features(stage.features * scaling.width)
            blocks = nnx.List([])
            for stride in (stage.stride, *[1] * (math.ceil(stage.blocks * depth) - 1)):
                shape = {"kernel_size": stage.kernel_size, "stride": stride, "expand_ratio": stage.expand_ratio}
                blocks.append(MBConv(features, out_features, **shape, nominal=nominal, **options))
                features, nominal = out_features, nominal and -(-nominal // stride)
            self.stages.append(blocks)
        self.head = SameConvNorm(features, HEAD_FEATURES, 1, **options)

    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        """Computes features. Raises InputError if H or W is below 32.

        Args:
            images: normalised images `[B, H, W, 3]`, with H and W of at least 32. The published weights need values
                from -1 to 1 (x / 127.5 - 1).
            train: whether to normalise by the batch's statistics and update the running statistics.

        Returns:
            Features `[B, h, w, 1280]`, and a dict of the outputs of the parts 'stem', 'stage1', ..., 'stage7'. h is
            H / 32, rounded up. With `native_padding`, h is rounded down for some H.
        """
        for name, side in zip(("height", "width"), images.shape[1:3], strict=True):
            if side < self.stride:
                raise InputError(f"image {name} {side}: EfficientNet-Lite takes images from {self.stride} pixels on")
        x, out = images, {}
        for name, part in self.parts(train=train):
            with jax.named_scope(name):
                out[name] = x = part(x)
        return out.pop("features"), out

    def parts(self, *, train: bool) -> Iterator[tuple[str, Callable[[Array], Array]]]:
        """Yields each part as (name, function). The first takes images. Each other part takes the previous output."""
        yield "stem", lambda images: jax.nn.relu6(self.stem(images, train=train))
        for number, stage in enumerate(self.stages, start=1):
            yield f"stage{number}", partial(run_blocks, stage, train, self.remat)
        yield "features", lambda x: jax.nn.relu6(self.head(x, train=train))


def _round_features(features: float) -> int:
    """Rounds to the nearest multiple of 8 that is at least 90 % of `features`."""
    rounded = max(8, int(features + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * features else rounded + 8
