"""Runs a PyTorch file's model in PyTorch and here, on the same images, and compares every stage."""

import importlib
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from aia_jax.cli.compare_stages import Stage, Stages, passes, timed
from aia_jax.cli.verify_sgraf import verify_retrieval
from aia_jax.data import scenes
from aia_jax.data.image_decoding import decode_image
from aia_jax.models.backbones import backbone_named
from aia_jax.report.table import Row, metric_table
from aia_jax.tasks import AnnotationTask
from aia_jax.utils.errors import InputError
from aia_jax.weights import name_map
from aia_jax.weights.load import check_model, model_shapes, model_with_arrays
from aia_jax.weights.torch_files import read_torch_file
from aia_jax.weights.torch_state import identify_state

_IMAGES = 4
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def verify(
    config: ConfigDict, source: Path, *, images: str | None = None, split: str | None = None, tolerance: float = 1e-5
) -> bool:
    """Prints, stage by stage, how far both frameworks are apart, and with `split` their metrics on it.

    Both compute in float32. Errors are relative to a stage's largest absolute value.

    Args:
        config: of the model in the file.
        source: a PyTorch or safetensors file.
        images: folder of images; None: drawn scenes, or for retrieval drawn features and captions.
        split: "train", "validation" or "test", to be scored by both; of annotation.
        tolerance: largest relative error.

    Returns:
        Whether every stage is within `tolerance`.

    Raises:
        InputError: torch or timm is missing, the file does not fit, or the folder holds no image.
    """
    if config.task == "retrieval":
        if images or split:
            raise InputError("--images and --split are of annotation; retrieval is compared on drawn features")
        return verify_retrieval(config, source, tolerance=tolerance)
    torch_models = _torch_models()
    config = config.copy_and_resolve_references()
    config.model.dtype = "float32"
    config.model.freeze_backbone = False
    config.model.native_padding = False  # as timm pads
    task = AnnotationTask(config)
    state, options = read_torch_file(source)
    torch_state = identify_state(state, str(source), options)
    shapes = model_shapes(task.build_model, backbone_only=torch_state.system == "backbone")
    check_model(torch_state, config, shapes, str(source))
    ours = model_with_arrays(task, name_map.from_torch(torch_state, shapes, str(source)))
    theirs = torch_models.load_torch(config, torch_state, state)
    pixels = _pixels(images, config.data.image_size)
    inputs = np.asarray(task.normalize(pixels))
    whole = torch_state.system != "backbone"
    here, there = _stages(ours, inputs, whole), _torch_stages(theirs, inputs, whole, config.model.backbone)
    passed = passes(here, there, f"{len(pixels)} images", tolerance)
    if split:
        if not whole:
            raise InputError(
                f"{source} holds a backbone alone, which scores no labels: no metrics of {split} to compare"
            )
        print(_metrics(task, split, ours, theirs), flush=True)
    return passed


def _torch_models() -> types.ModuleType:
    try:
        return importlib.import_module("aia_jax.weights.torch_annotator")
    except (ImportError, RuntimeError) as error:
        raise InputError(f"verifying needs torch and timm ({error}): pip install 'aia_jax[verify]'") from None


def _pixels(folder: str | None, size: int) -> np.ndarray:
    """uint8 `[K, S, S, 3]`: the first images of a folder, or drawn ones."""
    if folder is None:
        return np.stack([scenes.draw(0, index, size).image for index in range(_IMAGES)])
    if not Path(folder).is_dir():
        raise InputError(f"--images {folder} is no folder")
    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in _SUFFIXES)[:_IMAGES]
    if not files:
        raise InputError(f"{folder} holds no image ({', '.join(_SUFFIXES)})")
    return np.stack([_decoded(path, size) for path in files])


def _decoded(path: Path, size: int) -> np.ndarray:
    try:
        return decode_image(path.read_bytes(), size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _stages(model: nnx.Module, images: np.ndarray, whole: bool) -> Stages:
    """Each part of our model compiled by itself, timed on its second call."""
    stages, x = {}, images
    for name, part in model.backbone.parts(train=False):
        x, seconds = timed(jax.jit(part), x)
        stages[name] = Stage(np.asarray(x), seconds)
    if whole:
        (logits, out), seconds = timed(jax.jit(lambda features: model.head(features, train=False)), x)
        stages |= {name: Stage(np.asarray(value), None) for name, value in out.items()}
        stages["logits"] = Stage(np.asarray(logits), seconds)
    return stages


def _torch_stages(model: Any, images: np.ndarray, whole: bool, backbone: str) -> Stages:
    """The same stages of the PyTorch model, channels last, by hooks on its second call."""
    import torch

    marks: list[tuple[str, Any, float]] = []
    body = model.body if whole else model
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, y, name=name: marks.append((name, y, time.perf_counter()))
        )
        for name, module in _torch_parts(body, backbone)
    ]
    batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        model(batch)
        marks.clear()
        clock = time.perf_counter()
        result = model(batch)
        end = time.perf_counter()
    for hook in hooks:
        hook.remove()
    stages = {}
    for name, value, moment in marks:
        stages[name] = Stage(value.permute(0, 2, 3, 1).numpy(), moment - clock)
        clock = moment
    if whole:
        logits, out = result
        height, width = next(reversed(stages.values())).value.shape[1:3]
        if out:
            projection, attention = out["projection"], out["attention"]
            stages["projection"] = Stage(projection.unflatten(1, (height, width)).numpy(), None)
            stages["attention"] = Stage(attention.unflatten(2, (height, width)).numpy(), None)
        stages["logits"] = Stage(logits.numpy(), end - clock)
    return stages


def _torch_parts(body: Any, backbone: str) -> Iterator[tuple[str, Any]]:
    if backbone_named(backbone).family == "tresnet":
        yield "stem", body.conv1
        for name, blocks in body.named_children():
            if name.startswith("layer"):
                yield name.replace("layer", "stage"), blocks
        return
    yield "stem", body.bn1
    for number, blocks in enumerate(body.blocks, start=1):
        yield f"stage{number}", blocks
    yield "features", body.bn2


def _metrics(task: AnnotationTask, split: str, ours: nnx.Module, theirs: Any) -> str:
    """P, R, F1, N+ and mAP of both frameworks on a split."""
    import torch

    graphdef, state = nnx.split(ours)
    predict = jax.jit(lambda state, batch: task.predict(nnx.merge(graphdef, state), batch)["scores"])
    images, size = task.split(split).images, task.config.eval.batch_size
    scores = {"PyTorch": [], "JAX": []}
    for start in tqdm(range(0, len(images), size), desc=f"score {split}", unit="batch", leave=False, disable=None):
        batch = images[start : start + size]
        padded = np.pad(batch, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)])
        scores["JAX"].append(np.asarray(predict(state, {"image": padded}))[: len(batch)])
        pixels = np.array(np.asarray(task.normalize(batch)).transpose(0, 3, 1, 2))
        with torch.inference_mode():
            scores["PyTorch"].append(torch.sigmoid(theirs(torch.from_numpy(pixels))[0]).numpy())
    rows = {name: task.evaluate(split, {"scores": np.concatenate(parts)}) for name, parts in scores.items()}
    difference = {name: rows["JAX"][name] - value for name, value in rows["PyTorch"].items() if name in _COMPARED}
    table = [*(Row(name, metrics) for name, metrics in rows.items()), Row("difference", difference, signed=True)]
    return metric_table(table, f"{task.config.data.name}, {split} split: {len(images)} images")


_COMPARED = ("precision", "recall", "f1", "n_plus", "map")
