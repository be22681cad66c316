"""Compares a PyTorch model with this project's model: the outputs of all stages for the same weights and inputs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from aia_jax.data import scenes
from aia_jax.data.feature_cache import pad_batch
from aia_jax.data.image_decoding import decode_image
from aia_jax.data.photo_folder import photo_names
from aia_jax.report.table import Row, metric_table
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.tasks.retrieval import RetrievalTask
from aia_jax.training.model_arrays import merge_model, replace_arrays, split_model
from aia_jax.training.task import Task
from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import import_with_extra
from aia_jax.weights.load import load_torch_file
from aia_jax.weights.torch_state import TorchStateDict

_IMAGES = 4
_LENGTHS = np.array([20, 13, 9, 5, 3], np.int32)  # number of words of each random caption
_COMPARED = ("precision", "recall", "f1", "n_plus", "map")


# `{stage: output}`, the outputs `[B, ...]` of the parts of a model, with channels last.
Stages = dict[str, np.ndarray]


def verify(
    config: ConfigDict, source: Path, *, images: str | None = None, split: str | None = None, tolerance: float = 1e-5
) -> bool:
    """Compares the output of each part of the model with PyTorch, and prints the errors.

    Both frameworks compute in float32. An error is relative to the largest absolute value of PyTorch's output. With
    `split`, also prints the metrics of both frameworks.

    Args:
        source: PyTorch or safetensors file.
        images: folder of images for annotation; None: generated images. Retrieval uses random features and captions.
        split: for annotation, the split whose metrics to print: "train", "validation" or "test". None: no metrics.

    Returns:
        Whether the error of every part is within `tolerance`.

    Raises:
        InputError: torch or timm is missing, the file does not fit the config, or the folder has no image.
    """
    config = config.copy_and_resolve_references()
    config.model.dtype = "float32"
    if config.task == "retrieval":
        if images or split:
            raise InputError("--images and --split are for annotation; retrieval is compared on random features")
        return _verify_retrieval(RetrievalTask(config), source, tolerance)
    config.model.freeze_backbone = False
    config.model.native_padding = False  # pads as timm does
    return _verify_annotation(AnnotationTask(config), source, images, split, tolerance)


def _verify_annotation(
    task: AnnotationTask, source: Path, images: str | None, split: str | None, tolerance: float
) -> bool:
    torch_annotator = import_with_extra("aia_jax.weights.torch_annotator", "verifying", "parity", "torch", "timm")
    import torch

    torch_state, ours = _load(task, source)
    theirs = torch_annotator.load_torch(task.config, torch_state)
    pixels = _pixels(images, task.config.data.image_size)
    inputs = np.asarray(task.normalize(pixels))
    has_head = torch_state.system != "backbone"
    parts = [(name, jax.jit(part)) for name, part in ours.backbone.parts(train=False)]
    head = jax.jit(lambda features: ours.head(features, train=False)) if has_head else None
    here = _annotation_stages(parts, head, inputs, np.asarray)
    parts = _torch_parts(theirs.body if has_head else theirs, torch_state.family)
    head = partial(_torch_head, theirs) if has_head else None
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)))
        there = _annotation_stages(parts, head, batch, lambda features: features.permute(0, 2, 3, 1).numpy())
    passed = _compare(here, there, f"{len(pixels)} images", tolerance)
    if split:
        if not has_head:
            problem = f"{source} holds only a backbone, which does not score labels: --split needs a head"
            raise InputError(problem)
        print(_metrics(task, split, ours, theirs), flush=True)
    return passed


def _verify_retrieval(task: RetrievalTask, source: Path, tolerance: float) -> bool:
    torch_sgraf = import_with_extra("aia_jax.weights.torch_sgraf", "verifying", "parity", "torch")
    import torch

    torch_state, ours = _load(task, source)
    theirs = torch_sgraf.load_torch(task.config.model, torch_state.sgraf)
    rng, model = np.random.default_rng(0), task.config.model
    features = rng.normal(size=(_IMAGES, model.num_regions, model.num_features)).astype(np.float32)
    tokens = rng.integers(1, len(task.vocabulary), (len(_LENGTHS), _LENGTHS.max()), dtype=np.int32)
    tokens = np.where(np.arange(_LENGTHS.max()) < _LENGTHS[:, None], tokens, 0)
    here = _retrieval_stages(
        jax.jit(partial(ours.encode_images, train=False)),
        jax.jit(partial(ours.encode_captions, train=False)),
        jax.jit(partial(ours.similarity, train=False, block=len(features) * len(tokens))),
        (features, tokens, _LENGTHS),
    )
    inputs = [torch.from_numpy(array) for array in (features, tokens.astype(np.int64), _LENGTHS)]
    with torch.inference_mode():
        there = _retrieval_stages(theirs.encode_images, theirs.encode_captions, theirs.similarity, inputs)
    return _compare(here, there, f"{len(features)} images, {len(tokens)} captions", tolerance)


def _load(task: Task, source: Path) -> tuple[TorchStateDict, nnx.Module]:
    torch_state, arrays = load_torch_file(source, task)
    graphdef, weights = split_model(task.build_model(nnx.Rngs(0)))
    arrays = {path: jnp.asarray(array) for path, array in arrays.items()}
    return torch_state, merge_model(graphdef, replace_arrays(weights, arrays))


def _pixels(folder: str | None, size: int) -> np.ndarray:
    """Returns the first images of a folder, or generated images, as K images of S x S pixels, uint8 `[K, S, S, 3]`."""
    if folder is None:
        return np.stack([scenes.draw(0, index, size).image for index in range(_IMAGES)])
    pixels = []
    for name in photo_names(Path(folder))[:_IMAGES]:
        path = Path(folder, name)
        try:
            pixels.append(decode_image(path.read_bytes(), size))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return np.stack(pixels)


def _annotation_stages(
    parts: Iterable[tuple[str, Callable[..., Any]]],
    head: Callable[..., Any] | None,
    images: Any,
    channels_last: Callable[[Any], np.ndarray],
) -> Stages:
    """Runs the parts of a backbone, then the head. `channels_last` converts features to NumPy with channels last."""
    stages, x = {}, images
    for name, part in parts:
        x = part(x)
        stages[name] = channels_last(x)
    if head:
        logits, maps = head(x)
        stages |= {name: np.asarray(value) for name, value in (maps | {"logits": logits}).items()}
    return stages


def _torch_parts(body: Any, family: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yields the parts of timm's network; see `TResNet.parts` and `EfficientNetLite.parts`."""
    if family == "tresnet":
        yield "stem", body[:2]
        blocks = body[2:]
    else:
        yield "stem", lambda x: body.bn1(body.conv_stem(x))
        blocks = body.blocks
    yield from ((f"stage{number}", stage) for number, stage in enumerate(blocks, start=1))
    if family != "tresnet":
        yield "features", lambda x: body.bn2(body.conv_head(x))


def _torch_head(model: Any, features: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the logits and, for an attention head, intermediate arrays with the same shapes as in this project."""
    logits, maps = model.head(features)
    axes = {"projection": 1, "attention": 2}  # axis of the positions
    return logits, {name: value.unflatten(axes[name], features.shape[2:]) for name, value in maps.items()}


def _retrieval_stages(
    encode_images: Callable[..., Any],
    encode_captions: Callable[..., Any],
    score: Callable[..., Any],
    inputs: Sequence[Any],
) -> Stages:
    """Runs the encoders and the similarity on `inputs`: image features, caption tokens and caption lengths.

    An encoder returns a vector for each region or word, and a vector for the whole image or caption.
    """
    features, tokens, lengths = inputs
    images, captions = encode_images(features), encode_captions(tokens, lengths)
    outputs = (*images, *captions, score(images, captions, lengths))
    names = ("regions", "whole image", "words", "whole caption", "similarity")
    return {name: np.asarray(output) for name, output in zip(names, outputs, strict=True)}


def _compare(here: Stages, there: Stages, inputs: str, tolerance: float) -> bool:
    """Prints the errors of JAX (`here`) against PyTorch (`there`). Returns whether all are within `tolerance`."""
    print(f"{inputs}\n{'stage':<14}{'shape':>22}{'max abs':>12}{'max rel':>12}")
    errors = []
    for name, ours in here.items():
        theirs, absolute, relative = there[name], float("inf"), float("inf")
        if ours.shape == theirs.shape:
            absolute = float(np.abs(ours - theirs).max())
            relative = absolute / max(float(np.abs(theirs).max()), np.finfo(np.float32).tiny)
        errors.append(relative)
        print(f"{name:<14}{' x '.join(map(str, ours.shape)):>22}{absolute:>12.2e}{relative:>12.2e}")
    worst = float(np.max(errors))  # NaN if any error is NaN
    verdict = "passed" if worst <= tolerance else "FAILED"
    print(f"largest relative error {worst:.1e}, tolerance {tolerance:.1e}: {verdict}", flush=True)
    return worst <= tolerance


def _metrics(task: AnnotationTask, split: str, ours: nnx.Module, theirs: Any) -> str:
    """Returns a table of P, R, F1, N+ and mAP on a split, for both frameworks."""
    import torch

    from aia_jax.weights.torch_annotator import label_scores

    graphdef, state = nnx.split(ours)
    predict = jax.jit(lambda state, batch: task.predict(nnx.merge(graphdef, state), batch)["scores"])
    images, size = task.split(split).images, task.config.eval.batch_size
    scores = {"PyTorch": [], "JAX": []}
    for start in tqdm(range(0, len(images), size), desc=f"score {split}", unit="batch", leave=False, disable=None):
        batch = images[start : start + size]
        scores["JAX"].append(np.asarray(predict(state, {"image": pad_batch(batch, size)}))[: len(batch)])
        pixels = np.array(np.asarray(task.normalize(batch)).transpose(0, 3, 1, 2))
        with torch.inference_mode():
            logits, _ = theirs(torch.from_numpy(pixels))
            scores["PyTorch"].append(label_scores(logits, task.config.model).numpy())
    rows = {name: task.evaluate(split, {"scores": np.concatenate(parts)}) for name, parts in scores.items()}
    difference = {name: rows["JAX"][name] - value for name, value in rows["PyTorch"].items() if name in _COMPARED}
    table = [*(Row(name, metrics) for name, metrics in rows.items()), Row("difference", difference, signed=True)]
    return metric_table(table, f"{task.config.data.name}, {split} split: {len(images)} images")
