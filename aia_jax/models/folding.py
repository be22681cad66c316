"""Networks that only evaluate: batch norm folded into the convolutions once, not in each call."""

from flax import nnx

from aia_jax.models import efficientnet_lite
from aia_jax.models.layers import conv_norm


def fold_norms(model: nnx.Module) -> None:
    """Folds each norm that follows a convolution of `model` into it, for good; from then on `model` only evaluates."""
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, conv_norm.ConvNorm | efficientnet_lite.ConvNorm):
            module.fold()
