"""Compares SGRAF with a loop over captions in PyTorch: scoring of all pairs, and a training step.

    python -m benchmarks.retrieval --config configs/sgraf.py:coco --output retrieval.json

The published program loops over captions. Embeddings are random, captions have the lengths of COCO's, sizes are the
config's. `score` starts from encoded images and captions. `train` is the whole step: encoders, scores, both losses,
gradients, clipping, Adam. A CPU scores 100 images x 100 captions, other devices 5,000 x 25,000. PyTorch scores at most
500 captions, because its rate does not depend on their number. Needs jax, flax, optax and ml_collections, and torch for
the comparison. Uses the first device.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.cli.flags import positive
from aia_jax.losses.retrieval import triplet, visual_semantic_loss
from aia_jax.models.backbones import DTYPES
from aia_jax.models.sgraf import SGRAF, SGRAF_FIELDS
from aia_jax.training.model_arrays import merge_model, split_model
from aia_jax.utils.errors import InputError
from benchmarks.comparison import (
    best_peer,
    finish,
    make_parser,
    peer_row,
    run_command,
    timing_options,
    usable_device,
)
from benchmarks.step import peak_gb
from benchmarks.timing import isolated, machine, per_second, time_windows, versions

_PASSES = ("score", "train")
_PEER_CAPTIONS = 500
_NUM_WORDS = 10_000


def compare(
    config: ConfigDict,
    *,
    num_images: int | None = None,
    num_captions: int | None = None,
    windows: int = 5,
    seconds: float = 1.0,
    full: bool = False,
    torch_compile: bool = False,
) -> dict[str, Any]:
    """Times both sides, each in a new process.

    Args:
        config: a retrieval config with precomputed features.
        num_images, num_captions: numbers to score; None: chosen by device, see above.
        windows, seconds: see `timing.time_windows`.
        full: use the sizes of other devices, and the config's batch, on a CPU too.
        torch_compile: ignored, because captions of all lengths do not compile to one program.

    Raises:
        InputError: the config is of another task.
    """
    if config.task != "retrieval" or config.model.backbone:
        raise InputError("this benchmark needs a retrieval config with precomputed features: configs/sgraf.py")
    started_on, device = machine(), usable_device()
    small = device["platform"] == "cpu" and not full
    pairs = (num_images or (100 if small else 5_000), num_captions or (100 if small else 25_000))
    batch = min(config.batch_size, 32) if small else config.batch_size
    rows = []
    for name, count in zip(_PASSES, (pairs, (batch, batch)), strict=True):
        rows.append({"name": "aia_jax", "pass": name, **isolated(measure_ours, config, name, count, windows, seconds)})
        theirs = (count[0], min(count[1], _PEER_CAPTIONS))
        peer = peer_row("torch, by caption", measure_torch, config, name, theirs, windows, seconds, device["platform"])
        rows.append({"pass": name, **peer})
    return {
        "machine": started_on,
        "device": device,
        "versions": versions(),
        "model": {name: config.model[name] for name in (*SGRAF_FIELDS, "num_features", "dtype")},
        "results": rows,
        "ratio_to_peer": {name: best_peer([row for row in rows if row["pass"] == name])[1] for name in _PASSES},
    }


def measure_ours(config: ConfigDict, name: str, pairs: tuple[int, int], windows: int, seconds: float) -> dict[str, Any]:
    """Times this project's pass `name` over images x captions; scoring takes captions by length, as evaluation does."""
    start = time.perf_counter()
    run = runner(config, name, pairs)
    run(1)
    row = _row(run, pairs, windows, seconds)
    first = time.perf_counter() - start
    return row | {"first_seconds": first, "peak_gb": peak_gb(jax.devices()[0])}


def measure_scoring(
    config: ConfigDict, num_images: int, num_captions: int, repeats: int, windows: int, seconds: float, left: float
) -> dict[str, Any]:
    """Times the scoring of `repeats` x `num_captions` captions on a slice, and all of it if that fits.

    The slice is scored `repeats` times, because the time does not depend on the values.

    Args:
        left: seconds that this function may take.

    Returns:
        The numbers of the slice, as from `measure_ours`; `extrapolated_seconds`, `repeats` times the slice; and
        `whole_seconds`, measured, or None if the time was too short.
    """
    start = time.perf_counter()
    run = runner(config, "score", (num_images, num_captions))
    row = _row(run, (num_images, num_captions), windows, seconds)
    extrapolated = repeats * row["seconds_per_call"]["median"]
    whole = None
    if 1.2 * extrapolated < left - (time.perf_counter() - start):
        start = time.perf_counter()
        run(repeats)
        whole = time.perf_counter() - start
    return row | {"extrapolated_seconds": extrapolated, "whole_seconds": whole, "captions": repeats * num_captions}


def runner(config: ConfigDict, name: str, pairs: tuple[int, int]) -> Callable[[int], None]:
    """Returns a function that makes a number of passes `name` over images x captions, with random weights."""
    model = SGRAF(
        _NUM_WORDS,
        config.model.num_features,
        **_sizes(config),
        dtype=DTYPES[config.model.dtype],
        rngs=nnx.Rngs(0),
    )
    graphdef, weights = split_model(model)
    return (_scoring if name == "score" else _training)(config, graphdef, weights, pairs)


def _scoring(config: ConfigDict, graphdef: nnx.GraphDef, weights: Any, pairs: tuple[int, int]) -> Callable[[int], None]:
    regions, image_wholes, words, wholes, lengths = (jnp.asarray(array) for array in _embeddings(config, pairs))

    def score(weights: Any, images: Any, captions: Any, lengths: jax.Array) -> jax.Array:
        model = merge_model(graphdef, weights)
        return model.similarity(images, captions, lengths, train=False, block=config.eval.block)

    step, size = jax.jit(score), config.eval.batch_size
    batches = []
    for start in range(0, pairs[1], size):
        rows = slice(start, start + size)
        width = next(width for width in (*config.data.lengths, words.shape[1]) if width >= int(lengths[rows].max()))
        batches.append(((words[rows, :width], wholes[rows]), lengths[rows]))

    def run(calls: int) -> None:
        for _ in range(calls):
            scores = [step(weights, (regions, image_wholes), captions, lengths) for captions, lengths in batches]
        jax.block_until_ready(scores)

    return run


def _training(
    config: ConfigDict, graphdef: nnx.GraphDef, weights: Any, pairs: tuple[int, int]
) -> Callable[[int], None]:
    features, tokens, lengths, meaning = _batch(config, pairs[0])
    width = next((width for width in config.data.lengths if width >= lengths.max()), tokens.shape[1])
    tokens = np.pad(tokens, [(0, 0), (0, width)])[:, :width]
    optimizer = optax.chain(optax.clip_by_global_norm(2.0), optax.adam(3e-4))

    def loss(params: Any, key: jax.Array) -> jax.Array:
        model = merge_model(graphdef, {**weights, "params": params})
        image_key, caption_key = jax.random.split(key)
        images = model.encode_images(features, train=True, key=image_key)
        captions = model.encode_captions(tokens, lengths, train=True, key=caption_key)
        options = {"block": config.model.block, "remat": config.model.recompute}
        scores = model.similarity(images, captions, lengths, train=True, **options).T
        return triplet(scores, margin=0.2, hardest=True) + visual_semantic_loss(scores, meaning)

    @jax.jit
    def step(params: Any, state: optax.OptState, key: jax.Array) -> tuple[Any, optax.OptState]:
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return optax.apply_updates(params, updates), state

    carried = [weights["params"], optimizer.init(weights["params"])]

    def run(calls: int) -> None:
        for call in range(calls):
            carried[:] = step(*carried, jax.random.key(call))
        jax.block_until_ready(carried)

    return run


def measure_torch(
    config: ConfigDict, name: str, pairs: tuple[int, int], windows: int, seconds: float, platform: str
) -> dict[str, Any]:
    """Times the loop over captions in PyTorch, without padding, in float32."""
    import torch

    from aia_jax.weights.torch_sgraf import TorchSGRAF
    from benchmarks import torch_baseline

    device = torch_baseline.torch_device(platform)
    model = TorchSGRAF(_NUM_WORDS, config.model.num_features, **_sizes(config)).to(device)
    if name == "score":
        regions, image_wholes, words, wholes, lengths = (
            torch.from_numpy(array).to(device) for array in _embeddings(config, pairs)
        )
        model.eval()

        @torch.inference_mode()
        def call() -> None:
            model.similarity((regions, image_wholes), (words, wholes), lengths)

    else:
        features, tokens, lengths, meaning = (torch.from_numpy(a).to(device) for a in _batch(config, pairs[0]))
        optimizer = torch.optim.Adam(model.parameters(), 3e-4)

        def call() -> None:
            optimizer.zero_grad()
            captions = model.encode_captions(tokens, lengths.cpu())
            scores = model.similarity(model.encode_images(features), captions, lengths).T
            _torch_loss(scores, meaning).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()

    run = torch_baseline.runner(call, device)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return _row(run, pairs, windows, seconds) | {"peak_gb": peak}


def _torch_loss(scores: Any, meaning: Any) -> Any:
    import torch

    positive = scores.diagonal()
    off = 1 - torch.eye(len(scores), device=scores.device)
    captions = (0.2 + scores - positive[:, None]).relu() * off
    images = (0.2 + scores - positive[None]).relu() * off

    def ranks(matrix: torch.Tensor) -> torch.Tensor:
        argument = (matrix.unsqueeze(-1) - matrix.unsqueeze(0)) / 0.001
        return (off.unsqueeze(1) * argument.clamp(-50, 50).sigmoid()).sum(0) + 1

    by_score, by_meaning = ranks(scores), ranks(meaning)
    agreement = torch.minimum(by_score, by_meaning) / torch.maximum(by_score, by_meaning)
    return captions.max(1)[0].sum() + images.max(0)[0].sum() + 10 * (1 - agreement.mean())


def table(document: dict[str, Any]) -> str:
    """Formats the document as text."""
    model, device = document["model"], document["device"]
    lines = [
        f"{model['reasoning'].upper()}, {model['embed_size']} / {model['similarity_size']}, {model['dtype']}, "
        f"on {device['kind']}",
        f"\n{'':<28}{'images x captions':>20}{'pairs/s':>12}{'min':>12}{'max':>12}{'seconds':>10}{'peak GB':>9}",
    ]
    for row in document["results"]:
        title = f"{row['pass']:<8}{row['name']:<20}"
        if "failed" in row:
            lines.append(f"{title}    failed: {row['failed']}")
            continue
        rate, peak = row["pairs_per_second"], row["peak_gb"]
        lines.append(
            f"{title}{' x '.join(map(str, row['pairs'])):>20}{rate['median']:>12.0f}{rate['min']:>12.0f}"
            f"{rate['max']:>12.0f}{row['seconds_per_call']['median']:>10.3f}{'' if peak is None else f'{peak:.2f}':>9}"
        )
    ratios = document["ratio_to_peer"].items()
    return "\n".join([*lines, *(f"{name}: {ratio:.2f} x PyTorch" for name, ratio in ratios if ratio is not None)])


def _sizes(config: ConfigDict) -> dict[str, Any]:
    return {name: config.model[name] for name in SGRAF_FIELDS}


def _row(run: Callable[[int], None], pairs: tuple[int, int], windows: int, seconds: float) -> dict[str, Any]:
    timed = time_windows(run, windows=windows, seconds=seconds)
    rates = per_second(pairs[0] * pairs[1], timed)
    # `best_peer` compares `images_per_second`.
    return {"pairs": list(pairs), "pairs_per_second": rates, "images_per_second": rates, "seconds_per_call": timed}


def _lengths(count: int) -> np.ndarray:
    """Returns ascending lengths int32 `[count]`, distributed like COCO's captions with `<start>` and `<end>`."""
    lengths = np.random.default_rng(1).gamma(9.0, 0.55, count) + 7.5
    return np.sort(lengths.round().clip(8, 40)).astype(np.int32)


def _embeddings(config: ConfigDict, pairs: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Random unit vectors of regions, images, words (0 beyond the lengths) and captions; and ascending lengths."""
    rng, (num_images, num_captions), size = np.random.default_rng(0), pairs, config.model.embed_size
    lengths = _lengths(num_captions)
    shapes = (
        *((num_images, config.model.num_regions, size), (num_images, size)),
        *((num_captions, int(lengths[-1]), size), (num_captions, size)),
    )
    regions, image_wholes, words, wholes = (_unit(rng.standard_normal(shape, np.float32)) for shape in shapes)
    words *= (np.arange(words.shape[1]) < lengths[:, None])[..., None]
    return regions, image_wholes, words, wholes, lengths


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _batch(config: ConfigDict, count: int) -> tuple[np.ndarray, ...]:
    """Random features, tokens, descending lengths and semantic similarities of a training batch."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((count, config.model.num_regions, config.model.num_features), np.float32)
    lengths = _lengths(count)[::-1].copy()
    tokens = rng.integers(1, _NUM_WORDS, (count, int(lengths[0]))).astype(np.int32)
    tokens[np.arange(tokens.shape[1]) >= lengths[:, None]] = 0
    meaning = rng.random((count, count), np.float32)
    return features, tokens, lengths, (meaning + meaning.T) / 2


def _main(arguments: argparse.Namespace) -> int:
    sizes = {"num_images": arguments.num_images, "num_captions": arguments.num_captions}
    document = compare(arguments.config, **sizes, **timing_options(arguments))
    return finish(document, table(document), arguments.output)


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--num_images", type=positive, metavar="N", help="number of images to score")
    parser.add_argument("--num_captions", type=positive, metavar="N", help="number of captions to score")
    run_command(parser, _main)
