"""The same steps in fast PyTorch code: timm's backbone, the same head, loss, Adam and EMA.

This module needs torch; building a model also needs timm.
"""

import functools
import gc
import importlib
import os
import sys
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from aia_jax.data.annotation.channel_stats import CHANNEL_STATS
from aia_jax.losses.annotation import PRESETS
from aia_jax.models.backbones import backbone_named
from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import install_command
from benchmarks.step import TOTAL_STEPS, head_options, labels_of, random_batch
from benchmarks.timing import per_second, time_windows

_EPS = 1e-8


class Variant(NamedTuple):
    """A way to run the PyTorch side.

    Attributes:
        channels_last: use this memory format instead of NCHW.
        compiled: use `torch.compile`.
    """

    channels_last: bool
    compiled: bool


class TrainingPeer:
    """One training step: flips, normalisation, model, loss, gradients, Adam under the one-cycle schedule, EMA.

    Attributes:
        model: in training mode, on `device`.
        averages: EMA of the trained weights and the batch-norm statistics, by name in `model`.
    """

    def __init__(self, model: nn.Module, config: ConfigDict, variant: Variant, device: torch.device):
        self.model = placed(model, variant, device).train()
        self._forward = _Forward(self.model, config, variant, device)
        settings = config.optimizer
        self._weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        betas = (settings.beta1_max, settings.beta2)
        self._adam = torch.optim.Adam(self._weights, settings.max_learning_rate, betas, settings.eps, fused=True)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._adam,
            settings.max_learning_rate,
            TOTAL_STEPS,
            pct_start=settings.pct_start,
            base_momentum=settings.beta1_base,
            max_momentum=settings.beta1_max,
            div_factor=settings.initial_div,
            final_div_factor=settings.final_div,
        )
        self._clip_norm = settings.clip_norm
        self._averaged = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self._averaged |= {
            name: rows for name, rows in self.model.named_buffers() if name.endswith(("running_mean", "running_var"))
        }
        self.averages = {name: value.detach().clone() for name, value in self._averaged.items()}
        self._update_averages = torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema_decay)
        self._objective = torch.compile(self._loss) if variant.compiled else self._loss

    def step(self, images: Tensor, targets: Tensor) -> Tensor:
        """Updates the weights with images uint8 `[B, 3, S, S]` and targets `[B, C]`; returns the loss."""
        loss = self._objective(images, targets)
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        if self._clip_norm > 0:
            nn.utils.clip_grad_norm_(self._weights, self._clip_norm)
        self._adam.step()
        self._schedule.step()
        with torch.no_grad():
            self._update_averages(list(self.averages.values()), list(self._averaged.values()), None)
        return loss.detach()

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        return self._forward.loss(images, targets)


class InferencePeer:
    """One prediction step; the arguments are those of `TrainingPeer`."""

    def __init__(self, model: nn.Module, config: ConfigDict, variant: Variant, device: torch.device):
        self._forward = _Forward(placed(model, variant, device).eval(), config, variant, device)
        self._scores = torch.compile(self._forward.scores) if variant.compiled else self._forward.scores

    def step(self, images: Tensor, _targets: Tensor | None = None) -> Tensor:
        """Returns scores `[B, C]` of images uint8 `[B, 3, S, S]`."""
        with torch.inference_mode():
            return self._scores(images)


class _Forward:
    """Computes loss or scores from uint8 images, with autocast if the config computes in bfloat16."""

    def __init__(self, model: nn.Module, config: ConfigDict, variant: Variant, device: torch.device):
        mean, std = backbone_named(config.model.backbone).channel_stats or CHANNEL_STATS[config.data.name]
        self._mean, self._std = (torch.tensor(row, device=device).view(1, 3, 1, 1) for row in (mean, std))
        self._model, self._flips = model, config.data.flips
        self._format = _memory_format(variant)
        self._autocast = functools.partial(
            torch.autocast, device.type, torch.bfloat16, enabled=config.model.dtype == "bfloat16"
        )
        given = {name: value for name, value in config.loss.items() if name != "name" and value is not None}
        self._criterion = functools.partial(annotation_loss, **PRESETS[config.loss.name] | given)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        return self._criterion(self._logits(_random_flips(images, self._flips)), targets.float()).mean()

    def scores(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self._logits(images))

    def _logits(self, images: Tensor) -> Tensor:
        x = ((images.float() / 255 - self._mean) / self._std).contiguous(memory_format=self._format)
        with self._autocast():
            return self._model(x)[0].float()


def annotation_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_neg: float = 0,
    gamma_pos: float = 0,
    pos_margin: float = 0,
    neg_margin: float = 0,
    threshold: float = 0,
) -> Tensor:
    """The loss of `aia_jax.losses.annotation`, unreduced; without parameters, binary cross-entropy."""
    if not (gamma_neg or gamma_pos or pos_margin or neg_margin):
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    beyond = (torch.sigmoid(logits) - neg_margin).clamp(min=0)
    negative = torch.log((1 - beyond).clamp(min=_EPS)) * beyond**gamma_neg
    q = torch.sigmoid(logits - pos_margin)
    modulated = (1 - q) ** gamma_pos
    if pos_margin > 0:
        modulated = torch.where(q >= threshold, torch.ones_like(q), modulated)
    return -(targets * torch.log(q.clamp(min=_EPS)) * modulated + (1 - targets) * negative)


def build_model(config: ConfigDict) -> nn.Module:
    """Builds timm's backbone with the head of the config, with random weights.

    Raises:
        InputError: torch or timm is missing, or timm has no such backbone.
    """
    models = torch_models()
    body, num_features = models.build_body(config.model.backbone)
    num_labels = labels_of(config)
    if config.model.head == "gap":
        return models.TorchClassifier(body, num_labels, num_features, dropout=config.model.dropout)
    return models.TorchAnnotator(body, num_labels, num_features, **head_options(config))


def placed(model: nn.Module, variant: Variant, device: torch.device) -> nn.Module:
    """Moves the model to a device and memory format. Turns attention maps off, so that torch can use fused kernels."""
    for part in model.modules():
        if isinstance(part, nn.MultiheadAttention):
            part.forward = functools.partial(part.forward, need_weights=False)
    return model.to(device=device, memory_format=_memory_format(variant))


def measure_peer(
    config: ConfigDict, variant: Variant, platform: str, inference: bool, windows: int, seconds: float
) -> dict[str, Any]:
    """Times PyTorch's step on the images of `step.random_batch`.

    Args:
        platform: JAX's name of the device, "cpu" or "gpu".
        windows, seconds: see `timing.time_windows`.

    Returns:
        `images_per_second`, `seconds_per_step`, `compile_seconds` (first step; None if not compiled) and `peak_gb`.

    Raises:
        InputError: torch has no such device, or the model cannot be built.
    """
    device = torch_device(platform)
    _forget_other_models()
    batch = random_batch(config)
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).to(device)
    images = images.contiguous(memory_format=_memory_format(variant))
    targets = torch.from_numpy(batch["target"]).to(device)
    torch.manual_seed(config.seed)
    peer = (InferencePeer if inference else TrainingPeer)(build_model(config), config, variant, device)
    run = runner(lambda: peer.step(images, targets), device)
    first = _seconds(run)
    timed = time_windows(run, windows=windows, seconds=seconds)
    return {
        "images_per_second": per_second(config.batch_size, timed),
        "seconds_per_step": timed,
        "compile_seconds": first if variant.compiled else None,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
    }


def torch_device(platform: str) -> torch.device:
    """Returns torch's device for JAX's `platform`, set up for speed: all cores, tuned convolutions, TF32.

    Raises:
        InputError: torch has no such device.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    if platform == "cpu":
        return torch.device("cpu")
    if platform not in ("gpu", "cuda") or not torch.cuda.is_available():
        raise InputError(f"this PyTorch ({torch.__version__}) has no device to compare with JAX's {platform}")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def runner(call: Callable[[], object], device: torch.device) -> Callable[[int], None]:
    """Returns a function that makes a number of calls and waits for the device."""

    def run(calls: int) -> None:
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def torch_models() -> types.ModuleType:
    """Imports `aia_jax.weights.torch_annotator`, also if torchvision lacks operators for a CPU build of torch.

    Raises:
        InputError: torch or timm is missing.
    """
    name = "aia_jax.weights.torch_annotator"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        command = install_command("parity", "torch", "timm")
        raise InputError(f"the PyTorch side needs torch and timm ({error}): {command}") from None
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] in ("torchvision", "timm")]:
        del sys.modules[loaded]
    _stub_torchvision()
    return importlib.import_module(name)


@functools.cache  # the operators exist as long as the library object
def _stub_torchvision() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _random_flips(images: Tensor, flips: str) -> Tensor:
    up_down, left_right = torch.rand(2, len(images), 1, 1, 1, device=images.device) < 0.5
    if flips == "both":
        images = torch.where(up_down, images.flip(2), images)
    return images if flips == "none" else torch.where(left_right, images.flip(3), images)


def _forget_other_models() -> None:
    """Frees the memory of what the same process measured before."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _memory_format(variant: Variant) -> torch.memory_format:
    return torch.channels_last if variant.channels_last else torch.contiguous_format


def _seconds(run: Callable[[int], None]) -> float:
    start = time.perf_counter()
    run(1)
    return time.perf_counter() - start
