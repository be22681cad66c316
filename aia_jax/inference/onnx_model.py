"""Converts an annotator to PyTorch, and from PyTorch to an ONNX file. Also runs ONNX files.

torch.onnx folds batch norm into the convolutions. Importing this module needs torch, timm, onnxscript and onnxruntime.
"""

import logging
import math
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime
import onnxscript  # noqa: F401, torch.onnx imports it only when called
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from aia_jax.data.annotation.channel_stats import ChannelStats
from aia_jax.models.backbones import backbone_named
from aia_jax.models.efficientnet_lite import VARIANTS
from aia_jax.weights import name_map
from aia_jax.weights.torch_annotator import fix_padding, label_scores, load_torch
from aia_jax.weights.torch_state import identify_state


class OnnxAnnotator(nn.Module):
    """Maps images uint8 `[B, S, S, 3]` to scores `[B, C]` and, with `explain`, attention maps `[B, C, h, w]`.

    Args:
        model: a `TorchAnnotator` or `TorchClassifier` (from `weights.torch_annotator`) in evaluation mode.
        config: `config.model`.
        channel_stats: mean and standard deviation of each colour channel, for pixel values from 0 to 1.
    """

    def __init__(self, model: nn.Module, config: ConfigDict, channel_stats: ChannelStats, *, explain: bool):
        super().__init__()
        self.model, self.config, self.explain = model, config, explain
        for name, values in zip(("mean", "std"), channel_stats, strict=True):
            self.register_buffer(name, torch.tensor(values))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        normalised = (images.to(torch.float32) / 255 - self.mean) / self.std
        logits, out = self.model(normalised.permute(0, 3, 1, 2))
        scores = label_scores(logits, self.config)
        if not self.explain:
            return (scores,)
        side = math.isqrt(out["attention"].shape[2])
        return scores, out["attention"].unflatten(2, (side, side))


def build_torch_model(config: ConfigDict, arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """Builds an annotator in PyTorch, in evaluation mode. `arrays` is `{path: array}` with all arrays of the JAX model.

    With `config.model.native_padding`, EfficientNet-Lite uses the padding for the image size of its ImageNet weights.
    Otherwise the padding depends on the size of each image.
    """
    name = config.model.backbone
    family = backbone_named(name).family
    arrays = {path: np.asarray(value, np.float32) for path, value in arrays.items()}
    state = name_map.to_torch(arrays, system=name_map.system_of(arrays), family=family)
    model = load_torch(config, identify_state(state, "the model"))
    if family == "efficientnet_lite" and config.model.native_padding:
        fix_padding(model.body, VARIANTS[name.removeprefix(family)].resolution)
    return model


def to_onnx(
    model: nn.Module, config: ConfigDict, channel_stats: ChannelStats, *, batch: int | None, explain: bool
) -> bytes:
    """Returns the content of an ONNX file with the input `image` and the outputs `scores` and (`explain`) `attention`.

    Args:
        model, channel_stats, explain: see `OnnxAnnotator`.
        config: the config of the annotator.
        batch: batch size B; None: any batch size.
    """
    side = config.data.image_size
    images = torch.zeros((batch or 2, side, side, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch warns about its own code
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            OnnxAnnotator(model, config.model, channel_stats, explain=explain).eval(),
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["scores", "attention"] if explain else ["scores"],
            dynamic_shapes=None if batch else {"images": {0: torch.export.Dim("B")}},
        )
    proto = program.model_proto
    for node in proto.graph.node:
        node.ClearField("metadata_props")  # removes the paths of source files on this machine
    return proto.SerializeToString()


def load_onnx(content: bytes) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns the model in an ONNX file as a function of images. onnxruntime runs the model on the CPU."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"image": images}), strict=True))
