"""Times single convolutions and their gradients in XLA and in PyTorch on the first device.

    python -m benchmarks.convolutions --output benchmarks/results/convolutions-cpu.json

Both use float32, channels last and batch 8.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aia_jax.cli.flags import Parser, positive
from aia_jax.models.layers.conv import convolve
from aia_jax.utils.files import write_json
from benchmarks.comparison import peer_row, run_command, usable_device
from benchmarks.timing import isolated, machine, progress, time_windows, versions

# Side of the image, input and output channels, side of the kernel.
SHAPES = ((56, 64, 64, 3), (28, 128, 128, 3), (14, 256, 256, 3), (14, 1024, 256, 1))
PASSES = ("forward", "gradient of its input", "gradient of its kernel")
_BATCH = 8

Shape = tuple[int, int, int, int]


def compare(shapes: tuple[Shape, ...] = SHAPES, *, windows: int = 7, seconds: float = 0.2) -> dict[str, Any]:
    """Times every pass of every convolution, each framework in a new process.

    Args:
        shapes: side of the image, input and output channels, side of the kernel.
        windows, seconds: see `timing.time_windows`.

    Raises:
        InputError: JAX finds no usable device.
    """
    started_on, device = machine(), usable_device()
    progress("aia_jax, then torch")
    return {
        "machine": started_on,
        "device": device,
        "versions": versions(),
        "batch_size": _BATCH,
        "dtype": "float32",
        "shapes": [list(shape) for shape in shapes],
        "results": [
            {"name": "aia_jax", **isolated(measure_ours, shapes, windows, seconds)},
            peer_row("torch", measure_torch, shapes, device["platform"], windows, seconds),
        ],
    }


def measure_ours(shapes: tuple[Shape, ...], windows: int, seconds: float) -> dict[str, Any]:
    """Returns `seconds`, for each shape the times of each of `PASSES`."""

    def calls(shape: Shape) -> list[Callable[[], object]]:
        x, kernel, dy = map(jax.numpy.asarray, _arrays(shape))
        forward = jax.jit(convolve)
        to_input = jax.jit(lambda x, kernel, dy: jax.vjp(lambda x: convolve(x, kernel), x)[1](dy))
        to_kernel = jax.jit(lambda x, kernel, dy: jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](dy))
        return [lambda: forward(x, kernel), lambda: to_input(x, kernel, dy), lambda: to_kernel(x, kernel, dy)]

    def runner(call: Callable[[], object]) -> Callable[[int], None]:
        def run(count: int) -> None:
            for _ in range(count):
                jax.block_until_ready(call())

        return run

    return _timed(shapes, lambda shape: map(runner, calls(shape)), windows, seconds)


def measure_torch(shapes: tuple[Shape, ...], platform: str, windows: int, seconds: float) -> dict[str, Any]:
    """Times the same passes in PyTorch."""
    import torch

    from benchmarks import torch_baseline

    device = torch_baseline.torch_device(platform)

    def runners(shape: Shape) -> list[Callable[[int], None]]:
        x, kernel, dy = (
            torch.from_numpy(rows.transpose(0, 3, 1, 2)).to(device, memory_format=torch.channels_last)
            for rows in _arrays(shape)
        )
        padding = shape[3] // 2

        def gradient(of_input: bool) -> object:
            settings = (None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, [of_input, not of_input, False])
            return torch.ops.aten.convolution_backward(dy, x, kernel, *settings)

        passes = (
            lambda: torch.nn.functional.conv2d(x, kernel, padding=padding),
            lambda: gradient(True),
            lambda: gradient(False),
        )
        return [torch_baseline.runner(call, device) for call in passes]

    return _timed(shapes, runners, windows, seconds)


def table(document: dict[str, Any]) -> str:
    """Formats the document as text."""
    ours, theirs = document["results"]
    lines = [f"milliseconds, aia_jax / torch, on {document['device']['kind']}, batch {document['batch_size']}, float32"]
    lines.append(f"\n{'':<34}" + "".join(f"{name:>26}" for name in PASSES))
    for index, (side, inputs, outputs, size) in enumerate(document["shapes"]):
        cells = [
            "failed" if "failed" in row else [f"{1e3 * timed['median']:.1f}" for timed in row["seconds"][index]]
            for row in (ours, theirs)
        ]
        pairs = [f"{' / '.join(c if c == 'failed' else c[k] for c in cells):>26}" for k in range(len(PASSES))]
        lines.append(f"{f'{size}x{size}, {inputs} to {outputs}, {side} x {side}':<34}" + "".join(pairs))
    return "\n".join(lines)


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--windows", type=positive, default=7, help="windows to time")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    document = compare(windows=arguments.windows)
    print(table(document))
    if arguments.output:
        write_json(arguments.output, document)


def _timed(shapes: tuple[Shape, ...], runners: Callable[[Shape], Any], windows: int, seconds: float) -> dict[str, Any]:
    return {"seconds": [[time_windows(run, windows=windows, seconds=seconds) for run in runners(s)] for s in shapes]}


def _arrays(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random images `[B, S, S, I]`, kernel `[O, k, k, I]` and cotangent of the result `[B, S, S, O]`."""
    side, inputs, outputs, size = shape
    rng = np.random.default_rng(0)
    images, cotangent = (rng.standard_normal((_BATCH, side, side, width), np.float32) for width in (inputs, outputs))
    return images, rng.standard_normal((outputs, size, size, inputs), np.float32), cotangent


if __name__ == "__main__":
    run_command(_make_parser(), _run)
