"""Runs a PyTorch file's model in PyTorch and here, on the same images, and compares every stage."""

import importlib
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from aia_jax.commands.weights import check_model, model_shapes
from aia_jax.convert import tables
from aia_jax.convert.files import read_state_dict
from aia_jax.convert.naming import recognise
from aia_jax.data import scenes
from aia_jax.data.images import decode_image
from aia_jax.errors import InputError
from aia_jax.models.annotator import backbone_named
from aia_jax.report.table import Row, metric_table
from aia_jax.tasks import AnnotationTask
from aia_jax.training.state import merge_model, replace_arrays, split_model

_IMAGES = 4
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Stage(NamedTuple):
    """What a stage gave, `[B, ...]` with channels last, and the seconds it took (None: it is part of another's)."""

    value: np.ndarray
    seconds: float | None


def verify(
    config: ConfigDict, source: Path, *, images: str | None = None, split: str | None = None, tolerance: float = 1e-5
) -> bool:
    """Prints, stage by stage, how far both frameworks are apart, and with `split` their metrics on it.

    Both compute in float32. Errors are relative to a stage's largest absolute value.

    Args:
        config: of the model in the file.
        source: a PyTorch or safetensors file.
        images: folder of images; None: drawn scenes.
        split: "train", "validation" or "test", to be scored by both.
        tolerance: largest relative error.

    Returns:
        Whether every stage is within `tolerance`.

    Raises:
        InputError: torch or timm is missing, the file does not fit, or the folder holds no image.
    """
    torch_models = _torch_models()
    config = config.copy_and_resolve_references()
    config.model.dtype = "float32"
    config.model.freeze_backbone = False
    config.model.native_padding = False  # as timm pads
    task = AnnotationTask(config)
    state = read_state_dict(source)
    foreign = recognise(state, str(source))
    shapes = model_shapes(task.build_model, backbone_only=foreign.system == "backbone")
    check_model(foreign, config, shapes, str(source))
    ours = _our_model(task, tables.from_torch(foreign, shapes, str(source)))
    theirs = torch_models.load_torch(config, foreign, state)
    pixels = _pixels(images, config.data.image_size)
    inputs = np.asarray(task.normalize(pixels))
    whole = foreign.system != "backbone"
    here, there = _stages(ours, inputs, whole), _torch_stages(theirs, inputs, whole, config.model.backbone)
    print(_table(here, there, len(pixels)), flush=True)
    worst = float(np.max([_errors(here[name], there[name])[1] for name in here]))  # NaN if one is
    print(
        f"largest relative error {worst:.1e}, tolerance {tolerance:.1e}: {'passed' if worst <= tolerance else 'FAILED'}"
    )
    if split:
        if not whole:
            raise InputError(
                f"{source} holds a backbone alone, which scores no labels: no metrics of {split} to compare"
            )
        print(_metrics(task, split, ours, theirs), flush=True)
    return worst <= tolerance


def _torch_models() -> types.ModuleType:
    try:
        return importlib.import_module("aia_jax.convert.torch_models")
    except (ImportError, RuntimeError) as error:
        raise InputError(f"verifying needs torch and timm ({error}): pip install 'aia_jax[verify]'") from None


def _our_model(task: AnnotationTask, arrays: dict[str, np.ndarray]) -> nnx.Module:
    graphdef, weights = split_model(task.build_model(nnx.Rngs(0)))
    return merge_model(graphdef, replace_arrays(weights, {path: jax.numpy.asarray(a) for path, a in arrays.items()}))


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


def _stages(model: nnx.Module, images: np.ndarray, whole: bool) -> dict[str, Stage]:
    """Each part of our model compiled by itself, timed on its second call."""
    stages, x = {}, images
    for name, part in model.backbone.parts(train=False):
        x, seconds = _timed(jax.jit(part), x)
        stages[name] = Stage(np.asarray(x), seconds)
    if whole:
        (logits, out), seconds = _timed(jax.jit(lambda features: model.head(features, train=False)), x)
        stages |= {name: Stage(np.asarray(value), None) for name, value in out.items()}
        stages["logits"] = Stage(np.asarray(logits), seconds)
    return stages


def _timed(call: Callable[[Any], Any], x: Any) -> tuple[Any, float]:
    jax.block_until_ready(call(x))
    start = time.perf_counter()
    return jax.block_until_ready(call(x)), time.perf_counter() - start


def _torch_stages(model: Any, images: np.ndarray, whole: bool, backbone: str) -> dict[str, Stage]:
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
        for number in range(1, 5):
            yield f"stage{number}", getattr(body, f"layer{number}")
        return
    yield "stem", body.bn1
    for number, blocks in enumerate(body.blocks, start=1):
        yield f"stage{number}", blocks
    yield "features", body.bn2


def _errors(here: Stage, there: Stage) -> tuple[float, float]:
    """Largest absolute deviation, and over the largest magnitude."""
    if here.value.shape != there.value.shape:
        return float("inf"), float("inf")
    deviation = float(np.abs(here.value - there.value).max())
    return deviation, deviation / max(float(np.abs(there.value).max()), np.finfo(np.float32).tiny)


def _table(here: dict[str, Stage], there: dict[str, Stage], num_images: int) -> str:
    lines = [f"{'stage':<12}{'shape':>22}{'max abs':>12}{'max rel':>12}{'PyTorch ms':>12}{'JAX ms':>10}"]
    for name, stage in here.items():
        absolute, relative = _errors(stage, there[name])
        times = ["" if side.seconds is None else f"{1e3 * side.seconds:.1f}" for side in (there[name], stage)]
        shape = " x ".join(map(str, stage.value.shape))
        lines.append(f"{name:<12}{shape:>22}{absolute:>12.2e}{relative:>12.2e}{times[0]:>12}{times[1]:>10}")
    sums = [1e3 * sum(stage.seconds or 0 for stage in side.values()) for side in (there, here)]
    lines.append(f"{f'{num_images} images':<12}{'':>46}{sums[0]:>12.1f}{sums[1]:>10.1f}")
    return "\n".join(lines)


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
