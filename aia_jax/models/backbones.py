"""Lists the backbones by name, and builds them from the `model` part of a config."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from aia_jax.models import efficientnet_lite, tresnet
from aia_jax.models.efficientnet_lite import EfficientNetLite
from aia_jax.models.layers import conv_norm
from aia_jax.models.tresnet import TResNet
from aia_jax.utils.errors import InputError


class Backbone(NamedTuple):
    """A backbone that `config.model.backbone` can name.

    Attributes:
        build: function that builds the backbone. Its arguments are the options of `TResNet` or `EfficientNetLite`.
        family: "tresnet" or "efficientnet_lite".
        channel_stats: mean and standard deviation of each channel, to normalise images. None: those of the data set.
        multiple: height and width of the images must be multiples of this number.
    """

    build: Callable[..., TResNet | EfficientNetLite]
    family: str
    channel_stats: tuple[tuple[float, ...], tuple[float, ...]] | None
    multiple: int


_HALF = (0.5, 0.5, 0.5)
BACKBONES = {f"tresnet_{name}": Backbone(partial(TResNet, name), "tresnet", None, 4) for name in tresnet.VARIANTS} | {
    f"efficientnet_lite{name}": Backbone(partial(EfficientNetLite, name), "efficientnet_lite", (_HALF, _HALF), 1)
    for name in efficientnet_lite.VARIANTS
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build_backbone(config: ConfigDict, *, rngs: nnx.Rngs) -> TResNet | EfficientNetLite:
    """Builds a backbone. Raises InputError if a field of `config` has an unknown value.

    Args:
        config: `config.model` with the fields `backbone`, `remat`, `dtype` and `param_dtype`. TResNet also needs
            `input_statistics`, which has an effect only in bfloat16. EfficientNet-Lite also needs `native_padding`.
        rngs: random keys for the initial weights (stream `params`).
    """
    entry = backbone_named(config.backbone)
    if entry.family == "tresnet":
        # Float32 runs keep PyTorch's order of operations, because they are compared with PyTorch.
        own = {"input_statistics": config.input_statistics and config.dtype == "bfloat16"}
    else:
        own = {"native_padding": config.native_padding}
    return entry.build(**own, remat=config.remat, **dtypes(config), rngs=rngs)


def backbone_named(name: str) -> Backbone:
    """Returns an entry of `BACKBONES`. Raises InputError if the name is unknown."""
    return look_up("backbone", name, BACKBONES)


def dtypes(config: ConfigDict) -> dict[str, DTypeLike]:
    """Returns the dtypes that `dtype` and `param_dtype` in `config` name. Raises InputError if one is unknown."""
    return {field: look_up(field, config[field], DTYPES) for field in ("dtype", "param_dtype")}


def look_up(field: str, name: str, table: Mapping[str, Any]) -> Any:
    """Returns `table[name]`. If `name` is not in `table`, raises an InputError about `config.model.<field>`."""
    if name not in table:
        raise InputError(f"config.model.{field}: unknown {name!r}; known: {', '.join(table)}")
    return table[name]


def fold_norms(model: nnx.Module) -> None:
    """Folds each batch norm of `model` into the convolution before it. After this, the model cannot be trained."""
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, conv_norm.ConvNorm | efficientnet_lite.SameConvNorm):
            module.fold()
