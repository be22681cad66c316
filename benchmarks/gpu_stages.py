"""Lists what `benchmarks.gpu` measures, the most important first."""

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aia_jax.configs import corel5k, sgraf, vg500
from aia_jax.utils.files import read_json
from benchmarks import retrieval
from benchmarks.comparison import VARIANTS, measure_peer, peer_name
from benchmarks.roofline import measure_device
from benchmarks.step import measure_ours

ROOFLINES = "rooflines"
MODELS = ("TResNet-M, 448 px", "TResNet-L v2, 576 px")
STEPS = ("training", "inference")
# Images per second on one H200: the bars of the project.
BARS = {(MODELS[0], "training"): 1_800, (MODELS[1], "training"): 560}
BARS |= {(MODELS[0], "inference"): 8_000, (MODELS[1], "inference"): 2_700}
# Changes of each model's config whose training step is timed too.
CHANGES = {
    MODELS[0]: (
        *({"model.input_statistics": False}, {"model.remat": True}),
        *({"batch_size": 256}, {"batch_size": 64}, {"batch_size": 256, "model.remat": True}),
    ),
    MODELS[1]: ({"model.input_statistics": False}, {"model.remat": True}, {"batch_size": 128}),
}
REASONINGS = ("SAF", "SGR")
COREL5K = "Corel-5k from scratch"
_COCO = (5_000, 1_024, 25_000)  # images, captions of the slice, captions
_PEER_CAPTIONS = 200
_COREL5K_IMAGES = 4_500


class Stage(NamedTuple):
    """A measurement.

    Attributes:
        name: its key in the results.
        process: "jax" or "torch", the process that runs it.
        seconds: the duration on an H200, as estimated without one.
        measure: function that measures.
        arguments: its first arguments.
        takes: names of further arguments: "speeds" of the device, seconds "left", and "rate", images per second.
    """

    name: str
    process: str
    seconds: float
    measure: Callable[..., dict[str, Any]]
    arguments: tuple
    takes: tuple[str, ...] = ()


def step_name(model: str, step: str, side: str) -> str:
    """Returns the name of a stage that times a step. `side` is "aia_jax", a peer's name or `change_name`."""
    return f"{model}, {step}, {side}"


def change_name(change: dict[str, Any]) -> str:
    """Names a change of a config, such as "batch_size=64 model.remat=True"."""
    return " ".join(f"{field}={value}" for field, value in change.items())


def scoring_name(reasoning: str, side: str) -> str:
    """Returns the name of a stage that times the scoring of COCO."""
    return f"COCO 5K x 25K, {reasoning}, {side}"


def list_stages(platform: str, *, smoke: bool, root: str | None) -> list[Stage]:
    """Returns all stages. `smoke` shrinks them and keeps one of each kind; `root` has the folder Corel-5k."""
    timing = (1, 0.0) if smoke else (5, 0.5)
    stages = [Stage(ROOFLINES, "jax", 20, measure_device, timing), *_steps(platform, timing, smoke)]
    stages += [] if smoke else _changes(timing)  # the same programs with other options
    stages += _scoring(platform, timing, smoke)
    if root:
        stages.append(Stage(COREL5K, "jax", 180, train_corel5k, (root, smoke), ("left", "rate")))
    return stages


def annotation_config(model: str, *, smoke: bool = False) -> ConfigDict:
    """Returns the config of one of `MODELS`."""
    config = corel5k.get_config() if model == MODELS[0] else vg500.get_config()
    config.batch_size = 128 if model == MODELS[0] else 64
    return _tiny(config) if smoke else config


def _tiny(config: ConfigDict) -> ConfigDict:
    config.model.backbone, config.data.image_size, config.batch_size = "tresnet_tiny", 32, 2
    config.model.hidden_size = config.model.feedforward_size = 16
    config.model.num_heads = 2
    return config


def _steps(platform: str, timing: tuple, smoke: bool) -> Iterator[Stage]:
    """Yields this project and eager PyTorch in NCHW for each step, then the other variants of PyTorch."""
    pairs = [(model, step) for step in STEPS for model in MODELS[: 1 if smoke else 2]]
    seconds = dict(zip(BARS, (90, 120, 40, 50), strict=True))
    for index, variant in enumerate(VARIANTS[:1] if smoke else sorted(VARIANTS, key=_importance)):
        for model, step in pairs:
            config, inference = annotation_config(model, smoke=smoke), step == "inference"
            if index == 0:
                ours = (config.copy_and_resolve_references(), inference, *timing, None)
                name = step_name(model, step, "aia_jax")
                yield Stage(name, "jax", seconds[model, step], measure_ours, ours, ("speeds",))
            if smoke:
                config.model.backbone = "tresnet_m"  # timm has no smaller one
            peer = (config, variant, platform, inference, *timing)
            expected = seconds[model, step] + 10 if variant[1] else 25
            yield Stage(step_name(model, step, peer_name(*variant)), "torch", expected, measure_peer, peer)


def _importance(variant: tuple[bool, bool]) -> tuple[bool, bool]:
    channels_last, compiled = variant
    return channels_last and not compiled, channels_last  # channels_last is slow unless it is compiled


def _changes(timing: tuple) -> Iterator[Stage]:
    rows = [(model, change) for model in MODELS for change in CHANGES[model]]
    for model, change in sorted(rows, key=lambda row: CHANGES[row[0]].index(row[1])):
        config = annotation_config(model)
        config.update_from_flattened_dict(change)
        name = step_name(model, "training", change_name(change))
        yield Stage(name, "jax", 80 if model == MODELS[0] else 110, measure_ours, (config, False, *timing))


def _scoring(platform: str, timing: tuple, smoke: bool) -> Iterator[Stage]:
    images, captions, whole = (6, 8, 24) if smoke else _COCO
    for reasoning in REASONINGS:
        config = sgraf.get_config(f"coco,{reasoning.lower()}")
        if smoke:
            sizes = {"num_features": 5, "num_regions": 3, "embed_size": 8, "word_size": 4, "similarity_size": 4}
            config.model.update(sizes)
            config.eval.batch_size = 8
        ours = (config, images, captions, math.ceil(whole / captions), *timing)
        name = scoring_name(reasoning, "aia_jax")
        yield Stage(name, "jax", 50, retrieval.measure_scoring, ours, ("left",))
        peer = (config, "score", (images, min(captions, _PEER_CAPTIONS)), 1, 0.0, platform)
        yield Stage(scoring_name(reasoning, "torch"), "torch", 40, retrieval.measure_torch, peer)


def train_corel5k(root: str, smoke: bool, left: float, rate: float) -> dict[str, Any]:
    """Trains TResNet-M on Corel-5k from random weights for as many epochs as fit, and evaluates it.

    Args:
        root: folder that contains Corel-5k.
        left: seconds that this function may take.
        rate: images per second of the training step.

    Returns:
        `epochs`, `seconds`, and the `rows` of `metrics.json`, for the last and the best epoch.
    """
    from aia_jax.cli.train import train

    config = annotation_config(MODELS[0], smoke=smoke)
    config.data.root, config.data.placement, config.checkpoint.keep = root, "device", 1
    # Estimates: 150 s for start, compilation and the last evaluation; 2 s for evaluation and checkpoint of each epoch.
    fitting = math.floor(0.8 * (left - 150) / (_COREL5K_IMAGES / rate + 2))
    config.epochs = 1 if smoke else max(1, min(config.epochs, fitting))
    if smoke:
        config.batch_size = 64
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        train(config, Path(workdir))
        seconds = time.perf_counter() - start
        metrics = read_json(Path(workdir) / "evaluation" / "metrics.json", "the metrics of a run")
    return {"epochs": config.epochs, "seconds": seconds, "rows": metrics["rows"]}
