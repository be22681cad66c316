"""A small annotator for comparisons with PyTorch."""

from collections.abc import Callable

from flax import nnx

from aia_jax.models.annotator import Annotator
from aia_jax.models.attention_pooling import AttentionPooling
from aia_jax.models.tresnet import TResNet, Variant

VARIANT = Variant(blocks=(1, 1, 2, 1), width=16, basic_stages=2)
HEAD = {"hidden_size": 32, "num_heads": 4, "feedforward_size": 64, "dropout": 0.0}


def builder(num_labels: int, dtype: str = "float32", **options) -> Callable[[], Annotator]:
    """Returns a function that builds the annotator. `options` are those of the backbone."""
    dtypes = {"dtype": dtype, "param_dtype": dtype}

    def build() -> Annotator:
        rngs = nnx.Rngs(0)
        backbone = TResNet(VARIANT, **options, **dtypes, rngs=rngs)
        return Annotator(backbone, AttentionPooling(num_labels, backbone.num_features, **HEAD, **dtypes, rngs=rngs))

    return build
