"""A layer of convolution, batch norm and activation. Evaluation folds the norm into the convolution."""

import jax
from flax import nnx
from jax import Array
from jax.nn import initializers

from aia_jax.models.layers.batch_norm import BatchNorm
from aia_jax.models.layers.common import blur_pool
from aia_jax.models.layers.conv import Conv, FoldedConv
from aia_jax.models.layers.input_statistics import fold_and_convolve
from aia_jax.models.layers.squeeze_excite import SqueezeExcite


class ConvNorm(nnx.Module):
    """Convolution and batch norm, optionally with leaky ReLU, blur pooling and squeeze-and-excitation.

    Evaluation folds the norm into the convolution. With `input_statistics`, training also folds the norm (see
    `aia_jax.models.layers.input_statistics`). Otherwise, training uses `norm_act` after the convolution.
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
            raise ValueError(f"statistics from the input need a 1x1 convolution, not {kernel_size}x{kernel_size}")
        self.input_statistics = input_statistics
        self.conv = Conv(in_features, out_features, kernel_size, **options)
        self.bn = BatchNorm(out_features, scale_init=scale_init, **options)

    def __call__(
        self,
        x: Array,
        *,
        train: bool,
        slope: float | None = None,
        blur: bool = False,
        se: SqueezeExcite | None = None,
    ) -> Array:
        """Maps `x` `[B, H, W, I]` to `[B, H, W, O]`. `blur` halves height and width.

        Args:
            train: whether to normalise by the batch's statistics and update the running statistics.
            slope: negative slope of a leaky ReLU. None means no activation.
            blur: whether to apply blur pooling after the activation.
            se: squeeze-and-excitation, applied last. None means no squeeze-and-excitation.
        """
        if train and not self.input_statistics:
            y = self.conv(x)
            fused = None if se is None or blur else se.weights()
            y = self.bn.normalize_activate(y, slope=1.0 if slope is None else slope, blur=blur, se_weights=fused)
            return y if se is None or fused else se(y)
        y = fold_and_convolve(x, self.conv.kernel[...], self.bn) if train else self._folded(x)
        if slope is not None:
            y = jax.nn.leaky_relu(y, slope)
        if blur:
            y = blur_pool(y)
        return y if se is None else se(y)

    def fold(self) -> None:
        """Folds the norm into the convolution. After this, the module cannot be trained."""
        self.conv, self.bn = FoldedConv(self.conv, *self.bn.affine()), None

    def _folded(self, x: Array) -> Array:
        if self.bn is None:
            return self.conv(x)
        scale, offset = self.bn.affine()
        return self.conv(x, scale=scale, bias=offset)
