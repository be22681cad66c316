"""Times the attention-pooling head, forward and forward + backward, and the same head in PyTorch.

    python -m benchmarks.head --config configs/corel5k.py --config.batch_size=128 --output head.json

Shapes are those of the config's step. Needs jax, flax, optax, ml_collections, torch and timm. Uses the first device.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.models.attention_pooling import AttentionPooling
from aia_jax.models.backbones import DTYPES, build_backbone
from aia_jax.utils.errors import InputError
from benchmarks.comparison import (
    SMALL,
    best_peer,
    finish,
    make_parser,
    peer_row,
    run_command,
    shrunk,
    timing_options,
    usable_device,
)
from benchmarks.step import head_options, labels_of, peak_gb
from benchmarks.timing import isolated, machine, per_second, progress, time_windows, versions

_PASSES = ("forward", "forward + backward")


def compare(
    config: ConfigDict, *, windows: int = 5, seconds: float = 1.0, full: bool = False, torch_compile: bool = False
) -> dict[str, Any]:
    """Times both heads, each in a new process; the arguments are those of `comparison.compare`.

    Raises:
        InputError: the config has another head, or is not supported.
    """
    num_labels = labels_of(config)
    if config.model.head != "attention":
        raise InputError(f"config.model.head={config.model.head!r}: this benchmark times the head 'attention'")
    started_on = machine()
    device = usable_device()
    small = device["platform"] == "cpu" and not full
    config = shrunk(config) if small else config
    shape = features_shape(config)
    rows = []
    for training in (False, True):
        timing = (config, shape, num_labels, training, windows, seconds)
        progress(f"aia_jax, {_PASSES[training]}")
        rows.append({"name": "aia_jax", "pass": _PASSES[training], **isolated(measure_ours, *timing)})
        for compiled in (False, True):
            if device["platform"] != "cpu" or torch_compile or not compiled:
                name = "torch compiled" if compiled else "torch"
                row = peer_row(name, measure_torch, *timing, device["platform"], compiled)
                rows.append({"pass": _PASSES[training], **row})
    return {
        "machine": started_on,
        "device": device,
        "versions": versions(),
        "features": list(shape),
        "num_labels": num_labels,
        "dtype": config.model.dtype,
        "small_because_cpu": small,
        "results": rows,
        "ratio_to_best_peer": {name: best_peer([row for row in rows if row["pass"] == name])[1] for name in _PASSES},
    }


def features_shape(config: ConfigDict) -> tuple[int, int, int, int]:
    """Returns the shape `[B, h, w, F]` of the features of the config's backbone."""
    size = config.data.image_size

    def features(images: jax.Array) -> jax.Array:
        return build_backbone(config.model, rngs=nnx.Rngs(0))(images, train=False)[0]

    images = jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.float32)
    return jax.eval_shape(features, images).shape


def measure_ours(
    config: ConfigDict, shape: tuple[int, ...], num_labels: int, training: bool, windows: int, seconds: float
) -> dict[str, Any]:
    """Times this project's head on random features `[B, h, w, F]`; training differentiates the mean logit."""
    dtype = DTYPES[config.model.dtype]
    head = AttentionPooling(num_labels, shape[-1], **head_options(config), dtype=dtype, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def logits(params: Any, features: jax.Array, key: jax.Array | None) -> jax.Array:
        return nnx.merge(graphdef, params, rest)(features, train=training, key=key)[0]

    def gradients(params: Any, features: jax.Array, key: jax.Array) -> Any:
        return jax.value_and_grad(lambda *given: logits(*given, key).mean(), argnums=(0, 1))(params, features)

    features = jnp.asarray(_features(shape), dtype)
    arguments = (params, features, jax.random.key(0) if training else None)
    start = time.perf_counter()
    compiled = jax.jit(gradients if training else logits).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start

    def run(calls: int) -> None:
        for _ in range(calls):
            result = compiled(*arguments)
        jax.block_until_ready(result)

    return _row(run, shape, windows, seconds, compile_seconds) | {"peak_gb": peak_gb(jax.devices()[0])}


def measure_torch(
    config: ConfigDict,
    shape: tuple[int, ...],
    num_labels: int,
    training: bool,
    windows: int,
    seconds: float,
    platform: str,
    compiled: bool,
) -> dict[str, Any]:
    """Times PyTorch's head like `measure_ours`, with weights in float32 and autocast."""
    import torch

    from benchmarks import torch_baseline

    device = torch_baseline.torch_device(platform)
    head = torch_baseline.torch_models().TorchAttentionPooling(num_labels, shape[-1], **head_options(config))
    head = torch_baseline.placed(head, torch_baseline.Variant(False, compiled), device).train(training)
    lower = config.model.dtype == "bfloat16"
    features = torch.from_numpy(_features(shape)).permute(0, 3, 1, 2).to(device, torch.bfloat16 if lower else None)
    features.requires_grad_(training)

    def logits() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=lower):
            return head(features)[0].float()

    call = torch.compile(logits) if compiled else logits

    def gradients() -> None:
        head.zero_grad(set_to_none=True)
        features.grad = None
        call().mean().backward()

    run = torch_baseline.runner(gradients if training else torch.inference_mode()(call), device)
    start = time.perf_counter()
    run(1)
    first = time.perf_counter() - start
    row = _row(run, shape, windows, seconds, first if compiled else None)
    return row | {"peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None}


def table(document: dict[str, Any]) -> str:
    """Formats the document as text."""
    shape, device = " x ".join(map(str, document["features"])), document["device"]
    lines = [
        f"attention pooling of {shape} to {document['num_labels']} labels, {document['dtype']}, on {device['kind']}"
    ]
    if document["small_because_cpu"]:
        lines.append(SMALL)
    lines.append(f"\n{'':<38}{'img/s':>10}{'min':>10}{'max':>10}{'ms':>10}")
    for row in document["results"]:
        title = f"{row['pass']:<20}{row['name']:<18}"
        if "failed" in row:
            lines.append(f"{title}    failed: {row['failed']}")
            continue
        rate = row["images_per_second"]
        milliseconds = 1e3 * row["seconds_per_call"]["median"]
        lines.append(f"{title}{rate['median']:>10.1f}{rate['min']:>10.1f}{rate['max']:>10.1f}{milliseconds:>10.2f}")
    ratios = document["ratio_to_best_peer"].items()
    lines += [f"{name}: {ratio:.2f} x the best of PyTorch" for name, ratio in ratios if ratio is not None]
    return "\n".join(lines)


def _row(
    run: Callable[[int], None], shape: tuple[int, ...], windows: int, seconds: float, compile_seconds: float | None
) -> dict[str, Any]:
    timed = time_windows(run, windows=windows, seconds=seconds)
    rates = per_second(shape[0], timed)
    return {"images_per_second": rates, "seconds_per_call": timed, "compile_seconds": compile_seconds}


def _features(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _main(arguments: argparse.Namespace) -> int:
    document = compare(arguments.config, **timing_options(arguments))
    return finish(document, table(document), arguments.output)


if __name__ == "__main__":
    run_command(make_parser(__doc__), _main)
