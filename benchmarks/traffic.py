"""Counts the memory traffic of one step in the program compiled for a described device; the device is not needed.

    python -m benchmarks.traffic --config configs/corel5k.py --target h200 --config.batch_size=128

The traffic is the sum of the operands and results of all kernels. Without the device there is no autotuning: the
algorithms of convolutions and matmuls may change, but not fusion, layouts, traffic and memory.

For TPUs "gb_per_image" and "gflop_per_image" are the compiler's counts, with padding and the memory on the chip. The
numbers by kind and by stage are read from the program as for GPUs: main memory only, without padding.
"""

import argparse
import re
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.cli.exit_codes import execute
from aia_jax.cli.flags import Parser, add_config_argument, positive
from aia_jax.training.runs import package_versions
from aia_jax.utils.files import write_json
from benchmarks.collectives import CollectiveBytes, count_bytes
from benchmarks.comparison import check_writable
from benchmarks.hlo import Kernel, entry_kernels
from benchmarks.step import build, compile_step
from benchmarks.targets import TARGETS, Target, compiler_options, described_devices

_COMPILERS = ("jax-cuda13-plugin", "libtpu")
_STAGES = re.compile(r"\b(stem|stage\d|features|head|loss|optimizer|ema)\b")


def summarize(kernels: list[Kernel], bandwidth: float, flops: float, images: int) -> dict[str, Any]:
    """Sums the traffic of one device by kind of kernel and by stage, and models the time.

    Args:
        bandwidth, flops: bytes and operations per second of the device.
        images: images per device.
    """
    kinds, stages = defaultdict(_empty), defaultdict(_empty)
    for kernel in kernels:
        found = _STAGES.findall(kernel.scope)
        for group in (kinds[kernel.kind], stages[found[-1] if found else "other"]):
            group["kernels"] += 1
            group["gb_per_image"] += kernel.bytes / images / 1e9
            group["gflop_per_image"] += kernel.flops / images / 1e9
    collectives = [kernel for kernel in kernels if kernel.is_collective]
    seconds = sum(max(kernel.bytes / bandwidth, kernel.flops / flops) for kernel in kernels)
    return {
        "gb_per_image": sum(kernel.bytes for kernel in kernels) / images / 1e9,
        "gflop_per_image": sum(kernel.flops for kernel in kernels) / images / 1e9,
        "kernels": sum(kernel.kind != "transfer" for kernel in kernels),
        "collectives": len(collectives),
        "sent_mb": sum(kernel.sent for kernel in collectives) / 1e6,
        "received_mb": sum(kernel.received for kernel in collectives) / 1e6,
        "modelled_ms": 1e3 * seconds,
        "modelled_images_per_second": images / seconds,
        "by_kind": dict(sorted(kinds.items(), key=lambda item: -item[1]["gb_per_image"])),
        "by_stage": dict(sorted(stages.items())),
        "by_collective": {
            kind: {
                "kernels": sum(kernel.kind == kind for kernel in collectives),
                "sent_mb": sum(kernel.sent for kernel in collectives if kernel.kind == kind) / 1e6,
                "received_mb": sum(kernel.received for kernel in collectives if kernel.kind == kind) / 1e6,
            }
            for kind in sorted({kernel.kind for kernel in collectives})
        },
    }


def report(config: ConfigDict, target: str, num_devices: int, *, inference: bool) -> tuple[dict[str, Any], str]:
    """Compiles a config's step for a target; returns its numbers and the text of the program.

    Raises:
        InputError: the target is unknown or has no compiler, or the config is not supported.
    """
    devices, described = described_devices(target, num_devices), TARGETS[target]
    start = time.perf_counter()
    compiled = compile_step(config, devices, compiler_options(target), inference=inference)
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    images = config.batch_size // num_devices
    summary = summarize(entry_kernels(text), described.bandwidth, described.flops, images)
    counted = not inference and num_devices > 1 and config.accumulate_steps == 1
    if described.platform == "tpu":
        summary |= _compiler_counts(compiled, described, images, summary["gb_per_image"])
    return {
        "target": {"name": target, "device": described.device, "bandwidth": described.bandwidth},
        "step": "inference" if inference else "training",
        "model": f"{config.model.backbone} + {config.model.head}",
        "image_size": config.data.image_size,
        "batch_size": config.batch_size,
        "devices": num_devices,
        "fsdp": config.mesh.fsdp,
        "accumulate_steps": 1 if inference else config.accumulate_steps,
        "dtype": config.model.dtype,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "compile_seconds": seconds,
        "packages": package_versions(*_COMPILERS),
        **summary,
        "estimated_collectives_mb": _collectives_mb(config) if counted else {},
    }, text


def table(measured: dict[str, Any]) -> str:
    """Formats the report as text."""
    lines = [
        f"{measured['model']} at {measured['image_size']} px, {measured['step']} step, "
        f"batch {measured['batch_size']} on {measured['devices']} x {measured['target']['device']}",
        f"{measured['gb_per_image']:.3f} GB and {measured['gflop_per_image']:.1f} GFLOP per image, "
        f"{measured['kernels']} kernels, {measured['temporary_gb']:.1f} GB of temporary memory, "
        f"{measured['collectives']} collectives",
        *(
            [f"{measured['main_memory_gb_per_image']:.3f} GB per image in main memory"]
            if "main_memory_gb_per_image" in measured
            else []
        ),
        f"modelled: {measured['modelled_ms']:.1f} ms, {measured['modelled_images_per_second']:.0f} img/s per device"
        + (", at the speed of bfloat16" if measured["dtype"] != "bfloat16" else ""),
    ]
    for title, groups in (("kind", measured["by_kind"]), ("stage", measured["by_stage"])):
        lines.append(f"\n{title:<28}{'kernels':>9}{'GB/img':>10}{'GFLOP/img':>12}")
        for name, group in groups.items():
            numbers = f"{group['kernels']:>9}{group['gb_per_image']:>10.4f}{group['gflop_per_image']:>12.2f}"
            lines.append(f"{name:<28}{numbers}")
    if measured["collectives"]:
        lines.append(f"\n{'collective':<28}{'kernels':>9}{'MB sent':>10}{'received':>12}")
    for name, group in measured["by_collective"].items():
        lines.append(f"{name:<28}{group['kernels']:>9}{group['sent_mb']:>10.3f}{group['received_mb']:>12.3f}")
    if measured["estimated_collectives_mb"]:
        estimate = measured["estimated_collectives_mb"].items()
        lines.append("estimate, MB: " + ", ".join(f"{name} {number:.3f}" for name, number in estimate))
    return "\n".join(lines)


def _compiler_counts(compiled: Any, described: Target, images: int, main_memory: float) -> dict[str, Any]:
    """Returns the TPU compiler's own totals, the bytes in main memory, and the modelled time of these bytes."""
    counted = compiled.cost_analysis()
    seconds = images * max(main_memory * 1e9 / described.bandwidth, counted["flops"] / images / described.flops)
    return {
        "gb_per_image": counted["bytes accessed"] / images / 1e9,
        "main_memory_gb_per_image": main_memory,
        "gflop_per_image": counted["flops"] / images / 1e9,
        "modelled_ms": 1e3 * seconds,
        "modelled_images_per_second": images / seconds,
    }


def estimate_collectives(config: ConfigDict) -> CollectiveBytes:
    """Returns `collectives.count_bytes` of a config's model."""
    return count_bytes(nnx.eval_shape(lambda: build(config, nnx.Rngs(0))))


def _collectives_mb(config: ConfigDict) -> dict[str, float]:
    """Returns the minimum traffic between devices without split weights; {} for models that cannot be counted."""
    try:
        counted = estimate_collectives(config)
    except ValueError:
        return {}
    parts = {"gradients": counted.gradients, "norms forward": counted.norms_forward}
    parts |= {"norms backward": counted.norms_backward, "all": counted.bytes}
    return {name: number / 1e6 for name, number in parts.items()}


def _empty() -> dict[str, float]:
    return {"kernels": 0, "gb_per_image": 0.0, "gflop_per_image": 0.0}


def _main(arguments: argparse.Namespace) -> None:
    check_writable(arguments.output, arguments.hlo)
    measured, text = report(arguments.config, arguments.target, arguments.devices, inference=arguments.inference)
    print(table(measured))
    if arguments.output:
        write_json(arguments.output, measured)
    if arguments.hlo:
        arguments.hlo.write_text(text)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    parser = Parser(__doc__)
    add_config_argument(parser)
    parser.add_argument("--hlo", type=Path, metavar="FILE", help="write the optimised program here")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    parser.add_argument("--target", choices=TARGETS, default="h200", help="device to compile for")
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="number of devices")
    parser.add_argument(
        "--inference", action="store_true", help="compile the prediction step instead of the training step"
    )
    sys.exit(execute(parser, _main))
