"""TResNet (Ridnik et al., arXiv 2003.13630) with timm's layers. The published annotators were trained with them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers

from aia_jax.models.layers.common import average_pool, relu, run_blocks, space_to_depth
from aia_jax.models.layers.conv_norm import ConvNorm
from aia_jax.models.layers.squeeze_excite import SqueezeExcite
from aia_jax.utils.errors import InputError


@dataclass(frozen=True)
class Variant:
    """Sizes of a TResNet.

    Attributes:
        blocks: number of residual blocks in each stage. Every stage except the first halves the resolution.
        width: number of channels of the stem, and `planes` of the blocks in stage 1. Each later stage doubles `planes`.
        basic_stages: number of stages, from the first, that use `BasicBlock`. The other stages use `Bottleneck`.
        se_stages: number of stages, from the first, that use squeeze-and-excitation.
        stem_slope, block_slope: negative slopes of leaky ReLU in the stem and in the blocks.
    """

    blocks: tuple[int, ...]
    width: int
    basic_stages: int = 2
    se_stages: int = 3
    stem_slope: float = 1e-2
    block_slope: float = 1e-3


VARIANTS = {
    "m": Variant(blocks=(3, 4, 11, 3), width=64),
    "l": Variant(blocks=(4, 5, 18, 3), width=76),
    "xl": Variant(blocks=(4, 5, 24, 3), width=83),
    "v2_l": Variant(blocks=(3, 4, 23, 3), width=64, basic_stages=0),
    "tiny": Variant(blocks=(1, 1, 2), width=24),
}


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with a shortcut, and squeeze-and-excitation after the second convolution."""

    expansion = 1

    def __init__(
        self,
        in_features: int,
        planes: int,
        *,
        stride: int,
        slope: float,
        use_se: bool,
        input_statistics: bool,
        **options,
    ):
        self.stride = stride
        self.slope = slope
        self.conv1 = ConvNorm(in_features, planes, 3, **options)
        self.conv2 = ConvNorm(planes, planes, 3, scale_init=initializers.zeros, **options)
        self.se = SqueezeExcite(planes, max(planes // 4, 64), **options) if use_se else None
        self.downsample = _downsample(in_features, planes, stride, input_statistics, options)

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Applies the block to `x` `[B, H, W, C]`."""
        y = self.conv1(x, train=train, slope=self.slope, blur=self.stride == 2)
        y = self.conv2(y, train=train, se=self.se)
        return relu(y + _shortcut(self, x, train))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut, and squeeze-and-excitation after the 3x3 convolution.

    The output has 4 times `planes` channels.
    """

    expansion = 4

    def __init__(
        self,
        in_features: int,
        planes: int,
        *,
        stride: int,
        slope: float,
        use_se: bool,
        input_statistics: bool,
        **options,
    ):
        out_features = planes * self.expansion
        self.stride = stride
        self.slope = slope
        self.conv1 = ConvNorm(in_features, planes, 1, **options)
        self.conv2 = ConvNorm(planes, planes, 3, **options)
        widen = {"scale_init": initializers.zeros, "input_statistics": input_statistics}
        self.conv3 = ConvNorm(planes, out_features, 1, **widen, **options)
        self.se = SqueezeExcite(planes, max(out_features // 8, 64), **options) if use_se else None
        self.downsample = _downsample(in_features, out_features, stride, input_statistics, options)

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Applies the block to `x` `[B, H, W, C]`."""
        y = self.conv1(x, train=train, slope=self.slope)
        y = self.conv2(y, train=train, slope=self.slope, blur=self.stride == 2, se=self.se)
        y = self.conv3(y, train=train)
        return relu(y + _shortcut(self, x, train))


def _downsample(
    in_features: int, out_features: int, stride: int, input_statistics: bool, options: dict
) -> ConvNorm | None:
    if stride == 1 and in_features == out_features:
        return None
    return ConvNorm(in_features, out_features, 1, input_statistics=input_statistics, **options)


def _shortcut(block: BasicBlock | Bottleneck, x: Array, train: bool) -> Array:
    if block.downsample is None:
        return x
    return block.downsample(average_pool(x) if block.stride == 2 else x, train=train)


class TResNet(nnx.Module):
    """The body of a TResNet, without pooling or classifier. Maps normalised images to features.

    Attributes:
        num_features: channels of the last stage.
        stride: distance in image pixels between two feature positions.
    """

    def __init__(
        self,
        variant: str | Variant,
        *,
        input_statistics: bool = False,
        remat: bool = False,
        **options,
    ):
        """Builds a `Variant`, or the variant with this name in `VARIANTS`.

        Args:
            input_statistics: whether, for 1x1 convolutions with more outputs than inputs, training computes the output
                statistics from the input. See `aia_jax.models.layers.input_statistics`.
            remat: see `run_blocks`.
            options: `dtype`, `param_dtype` and `rngs`, as for `nnx.Linear`.
        """
        variant = VARIANTS[variant] if isinstance(variant, str) else variant
        self.dtype = options.get("dtype", jnp.float32)
        self.remat = remat
        self.stem_slope = variant.stem_slope
        self.stride = 4 * 2 ** (len(variant.blocks) - 1)
        self.conv1 = ConvNorm(48, variant.width, 3, **options)
        self.stages = nnx.List([])
        features = variant.width
        for index, count in enumerate(variant.blocks):
            block_class = BasicBlock if index < variant.basic_stages else Bottleneck
            planes = variant.width * 2**index
            shape = {"slope": variant.block_slope, "use_se": index < variant.se_stages}
            shape["input_statistics"] = input_statistics
            blocks = nnx.List([])
            for stride in (1 if index == 0 else 2, *[1] * (count - 1)):
                blocks.append(block_class(features, planes, stride=stride, **shape, **options))
                features = planes * block_class.expansion
            self.stages.append(blocks)
        self.num_features = features

    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        """Computes features. Raises InputError if H or W is no multiple of 4, or too small for the number of stages.

        Args:
            images: normalised images `[B, H, W, 3]`.
            train: whether to normalise by the batch's statistics and update the running statistics.

        Returns:
            Features `[B, h, w, C]` (h = H / stride, rounded up), and a dict of the outputs of all parts ('stem', ...).
        """
        # Blur pooling reflects at the border, so its input in the last stage needs at least two positions.
        smallest = 4 if len(self.stages) == 1 else self.stride // 2 + 4
        for name, side in zip(("height", "width"), images.shape[1:3], strict=True):
            if side % 4 or side < smallest:
                raise InputError(f"image {name} {side}: TResNet takes multiples of 4 from {smallest} on")
        x, out = images, {}
        for name, part in self.parts(train=train):
            with jax.named_scope(name):
                out[name] = x = part(x)
        return x, out

    def parts(self, *, train: bool) -> Iterator[tuple[str, Callable[[Array], Array]]]:
        """Yields each part as (name, function). The first takes images. Each other part takes the previous output."""

        def stem(images: Array) -> Array:
            x = space_to_depth(images.astype(self.dtype), 4)
            return self.conv1(x, train=train, slope=self.stem_slope)

        yield "stem", stem
        for number, stage in enumerate(self.stages, start=1):
            yield f"stage{number}", partial(run_blocks, stage, train, self.remat)
