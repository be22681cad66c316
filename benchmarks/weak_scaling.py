"""Estimates the cost of data parallelism on hosts with eight H200s from counted steps and assumed networks.

    python -m benchmarks.weak_scaling --config configs/corel5k.py --bar 1800 \\
        --one benchmarks/results/traffic-m448-h200-train.json --eight benchmarks/results/traffic-m448-h200x8-train.json

The files are reports of `benchmarks.traffic` for the same config on one device and on eight. Nothing is measured.
`docs/performance.md` gives the source of each assumption.
"""

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aia_jax.cli.exit_codes import execute
from aia_jax.cli.flags import Parser, add_config_argument, positive
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json
from benchmarks.traffic import estimate_collectives

HOSTS = (1, 2, 4, 16, 64, 128)
DEVICES = 8  # per host
NETWORKS = (400e9, 50e9)  # bytes per second and host: eight adapters of 400 Gb/s, or one
_NVLINK = 370e9  # bytes per second of an all-reduce within a host
_KERNEL = 2e-6  # seconds of an extra kernel
_NOT_OVERLAPPED = 32e6  # bytes of the last gradients


class Step(NamedTuple):
    """The properties of a step that the estimate needs.

    Attributes:
        seconds: time on one device.
        waits: number of sums without overlap.
        extra_kernels: number of kernels that only the program for several devices has.
        awaited: bytes of the sums without overlap.
        overlapped: bytes of the other sums.
    """

    seconds: float
    waits: int
    extra_kernels: int
    awaited: float
    overlapped: float


class Cost(NamedTuple):
    """Seconds of a step beyond its computation."""

    latency: float
    extra_kernels: float
    awaited: float
    gradients: float

    def efficiency(self, seconds: float) -> float:
        """Returns the efficiency relative to one device with a step of `seconds`."""
        return seconds / (seconds + sum(self))


def cost(step: Step, hosts: int, network: float) -> Cost:
    """Estimates the cost of a step on `hosts` hosts with `network` bytes per second each."""

    def seconds(number: float) -> float:
        within = 2 * (DEVICES - 1) / DEVICES * number / _NVLINK
        return within + 2 * (hosts - 1) / hosts * number / network

    return Cost(
        step.waits * small_sum(hosts),
        step.extra_kernels * _KERNEL,
        seconds(step.awaited),
        seconds(min(step.overlapped, _NOT_OVERLAPPED)),
    )


def small_sum(hosts: int) -> float:
    """Returns the seconds of an all-reduce of few bytes, by NCCL's cost model of trees."""
    if hosts == 1:
        return 1e-6 * (6.8 + 14 * 0.6)
    return 1e-6 * (6.8 + 14 * 0.6 * 1.8 + 2 * 5.0 * math.log2(hosts))


def table(step: Step, seconds_at_bar: float) -> str:
    """Formats a Markdown table with one row per number of hosts; numbers in brackets are for the slower network."""
    rows = []
    for hosts in HOSTS:
        costs = [cost(step, hosts, network) for network in NETWORKS[: 2 if hosts > 1 else 1]]
        cells = [
            f"{DEVICES * hosts:,}",
            f"{1e3 * costs[0].latency:.1f}",
            f"{1e3 * costs[0].extra_kernels:.1f}",
            _cell([f"{1e3 * cost.awaited:.1f}" for cost in costs]),
            _cell([f"{1e3 * cost.gradients:.1f}" for cost in costs]),
            *(
                _cell([f"{100 * cost.efficiency(seconds):.0f} %" for cost in costs])
                for seconds in (step.seconds, seconds_at_bar)
            ),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    head = "| GPUs | norms' latency, ms | extra kernels | bytes waited for | last gradients | efficiency | at the bar |"
    return "\n".join([head, "| --- " * 7 + "|", *rows])


def read_step(config: ConfigDict, one: Path, eight: Path) -> tuple[Step, int]:
    """Reads the step of a config and the images per device from reports of `benchmarks.traffic`.

    Raises:
        InputError: a file cannot be read or is another report, or the config's model cannot be counted.
    """
    try:
        collectives = estimate_collectives(config)
    except ValueError as error:
        raise InputError(f"--config: {error}") from None
    alone, many = (_report(path, devices, config) for path, devices in ((one, 1), (eight, DEVICES)))
    if many["batch_size"] != DEVICES * alone["batch_size"]:
        raise InputError(
            f"{eight} has batch {many['batch_size']}; needed is {DEVICES} x {alone['batch_size']}, from {one}"
        )
    step = Step(
        seconds=alone["modelled_ms"] / 1e3,
        waits=collectives.waits,
        extra_kernels=many["kernels"] - alone["kernels"],
        awaited=collectives.awaited,
        overlapped=collectives.bytes - collectives.awaited,
    )
    return step, alone["batch_size"]


def _report(path: Path, devices: int, config: ConfigDict) -> dict[str, Any]:
    found = read_json(path, "a report of benchmarks.traffic")
    wanted = {
        "step": "training",
        "devices": devices,
        "fsdp": 1,
        "accumulate_steps": 1,
        "model": f"{config.model.backbone} + {config.model.head}",
        "image_size": config.data.image_size,
        "dtype": config.model.dtype,
    }
    if not isinstance(found, dict) or not {*wanted, "target", "modelled_ms", "kernels", "batch_size"} <= found.keys():
        raise InputError(f"{path} is not a report of benchmarks.traffic")
    if found["target"].get("name") != "h200":
        raise InputError(f"{path} is for {found['target'].get('device')}; the assumed networks are those of H200s")
    for name, value in wanted.items():
        if found[name] != value:
            raise InputError(f"{path} has {name} {found[name]!r}; needed is {value!r}, as in the config")
    return found


def _cell(numbers: list[str]) -> str:
    return numbers[0] if len(numbers) == 1 else f"{numbers[0]} ({numbers[1]})"


def _run(arguments: argparse.Namespace) -> None:
    step, images = read_step(arguments.config, arguments.one, arguments.eight)
    print(
        f"step {1e3 * step.seconds:.1f} ms, {step.waits} waits, {step.extra_kernels:,} extra kernels; "
        f"{step.awaited / 1e6:.1f} MB waited for, {step.overlapped / 1e6:.1f} MB overlapped"
    )
    print(table(step, images / arguments.bar))


def main() -> int:
    """Runs the command and returns its exit code."""
    parser = Parser(__doc__)
    add_config_argument(parser, "annotation config of both reports")
    parser.add_argument("--one", required=True, type=Path, metavar="FILE.json", help="report for one device")
    parser.add_argument("--eight", required=True, type=Path, metavar="FILE.json", help="report for eight devices")
    parser.add_argument(
        "--bar", required=True, type=positive, metavar="IMG/S", help="speed of one device, for the last column"
    )
    return execute(parser, _run)


if __name__ == "__main__":
    raise SystemExit(main())
