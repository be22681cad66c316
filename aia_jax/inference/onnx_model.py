"""A model's twin in PyTorch as an ONNX file, which onnxruntime and other runtimes read.

torch.onnx folds batch norm into the convolutions. Importing this needs torch, timm, onnxscript and onnxruntime.
"""

import logging
import math
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime
import onnxscript  # noqa: F401, which torch.onnx asks for only when it is called
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from aia_jax.weights import name_map
from aia_jax.weights.torch_annotator import fix_padding, load_torch
from aia_jax.weights.torch_state import identify_state

ChannelStats = tuple[tuple[float, ...], tuple[float, ...]]


class OnnxAnnotator(nn.Module):
    """Images uint8 `[B, S, S, 3]` to scores `[B, C]` and, if asked to `explain`, attention `[B, C, h, w]`.

    Args:
        twin: a `TorchAnnotator` or `TorchClassifier`, in evaluation mode.
        channel_stats: mean and standard deviation, on the scale 0..1.
    """

    def __init__(self, twin: nn.Module, channel_stats: ChannelStats, *, explain: bool):
        super().__init__()
        self.twin, self.explain = twin, explain
        for name, values in zip(("mean", "std"), channel_stats, strict=True):
            self.register_buffer(name, torch.tensor(values))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        normalised = (images.to(torch.float32) / 255 - self.mean) / self.std
        logits, out = self.twin(normalised.permute(0, 3, 1, 2))
        scores = torch.sigmoid(logits)
        if not self.explain:
            return (scores,)
        side = math.isqrt(out["attention"].shape[2])
        return scores, out["attention"].unflatten(2, (side, side))


def build_twin(
    config: ConfigDict, arrays: Mapping[str, np.ndarray], *, family: str, resolution: int | None = None
) -> nn.Module:
    """An annotator in PyTorch, in evaluation mode.

    Args:
        config: whose `model` the arrays are of.
        arrays: path to array of the whole model.
        family: of its backbone.
        resolution: of EfficientNet-Lite: what images are padded as at, see `fix_padding`; None: as their size asks for.
    """
    arrays = {path: np.asarray(value, np.float32) for path, value in arrays.items()}
    state = name_map.to_torch(arrays, system=name_map.system_of(arrays), family=family)
    twin = load_torch(config, identify_state(state, "the model"), state)
    if resolution:
        fix_padding(twin.body, resolution)
    return twin


def to_onnx(
    twin: nn.Module, channel_stats: ChannelStats, image_size: int, *, batch: int | None, explain: bool
) -> bytes:
    """Serialises a model of one input, `image`, and the outputs `scores` and, if asked to `explain`, `attention`.

    Args:
        twin, channel_stats, explain: see `OnnxAnnotator`.
        image_size: S.
        batch: B; None: any.
    """
    images = torch.zeros((batch or 2, image_size, image_size, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about itself
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            OnnxAnnotator(twin, channel_stats, explain=explain).eval(),
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["scores", "attention"] if explain else ["scores"],
            dynamic_shapes=None if batch else {"images": {0: torch.export.Dim("B")}},
        )
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")  # the paths of this machine's source files
    return model.SerializeToString()


def load_onnx(content: bytes) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The model as a function of images, run by onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"image": images}), strict=True))
