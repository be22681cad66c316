"""Compares the measured times of a program's kernels, read from a trace, with their modelled times."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from benchmarks.hlo import Kernel, entry_kernels

# Names of kernels in the libraries, which the trace shows where it does not name the instruction.
_LIBRARIES = (
    (re.compile("wgrad", re.IGNORECASE), "convolution backward filter"),
    (re.compile("dgrad", re.IGNORECASE), "convolution backward input"),
    (re.compile("conv|fprop|cudnn", re.IGNORECASE), "convolution forward"),
    (re.compile("gemm|nvjet|cutlass|cublas", re.IGNORECASE), "matmul"),
    (re.compile("memcpy|memset", re.IGNORECASE), "copy"),
)
_SLOWEST = 20


class Speeds(NamedTuple):
    """The speed of a device: `bandwidth` in bytes and `flops` in operations, per second."""

    bandwidth: float
    flops: float


def compare_with_model(folder: Path, text: str, steps: int, images: int, speeds: Speeds) -> dict[str, Any]:
    """Sums measured and modelled times by kind of kernel.

    The modelled time of a kernel is the larger of bytes / bandwidth and operations / flops. Operations inside fusions
    do not count.

    Args:
        folder: of the trace that `jax.profiler.trace` wrote.
        text: `compiled.as_text()` of the program.
        steps: number of steps in the trace.
        images: number of images in a step.

    Returns:
        `measured_ms` and `modelled_ms` of a step; `by_kind`, which also has the kernels and `gb_per_image` of each
        kind; and `slowest`, the kernels with the longest measured times. "other" are kernels that the program does not
        name.

    Raises:
        ValueError: the trace has no kernels, or the text cannot be read.
    """
    kernels = {kernel.name: kernel for kernel in entry_kernels(text)}
    by_kernel_name = {re.sub(r"\W", "_", name): kernel for name, kernel in kernels.items()}
    measured: dict[str, float] = defaultdict(float)
    kinds: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_FIELDS, 0))
    for name, seconds in _events(folder):
        kernel = kernels.get(name) or by_kernel_name.get(name)
        measured[kernel.name if kernel else name] += seconds / steps
        kinds[kernel.kind if kernel else _kind(name)]["measured_ms"] += 1e3 * seconds / steps
    if not measured:
        raise ValueError("the trace has no kernels")
    for kernel in entry_kernels(text):  # a kernel in a loop appears once per iteration
        kind = kinds[kernel.kind]
        kind["kernels"] += 1
        kind["gb_per_image"] += kernel.bytes / images / 1e9
        kind["modelled_ms"] += 1e3 * _modelled(kernel, speeds)
    slowest = sorted(measured.items(), key=lambda item: -item[1])[:_SLOWEST]
    return {
        "measured_ms": 1e3 * sum(measured.values()),
        "modelled_ms": sum(kind["modelled_ms"] for kind in kinds.values()),
        "by_kind": dict(sorted(kinds.items(), key=lambda item: -item[1]["measured_ms"])),
        "slowest": [_row(name, seconds, kernels.get(name), speeds) for name, seconds in slowest],
    }


_FIELDS = ("kernels", "gb_per_image", "modelled_ms", "measured_ms")


def _events(folder: Path) -> Iterator[tuple[str, float]]:
    """Yields the instruction, or else the kernel, and the seconds of each kernel in the newest trace.

    On a GPU, the lines "Stream" have the kernels. On a CPU, the threads' events name the instruction.
    """
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    planes = list(ProfileData.from_file(str(files[-1])).planes) if files else []
    devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                continue  # sums of what the streams have
            for event in line.events:
                instruction = dict(event.stats).get("hlo_op")
                if instruction or devices:
                    yield str(instruction or event.name), event.duration_ns / 1e9


def _kind(name: str) -> str:
    return next((kind for pattern, kind in _LIBRARIES if pattern.search(name)), "other")


def _modelled(kernel: Kernel, speeds: Speeds) -> float:
    return max(kernel.bytes / speeds.bandwidth, kernel.flops / speeds.flops)


def _row(name: str, seconds: float, kernel: Kernel | None, speeds: Speeds) -> dict[str, Any]:
    row = {"name": name[:200], "measured_ms": 1e3 * seconds}
    if kernel:
        row |= {"kind": kernel.kind, "modelled_ms": 1e3 * _modelled(kernel, speeds), "scope": kernel.scope[-200:]}
    return row
