"""Measures this project on one GPU within a number of minutes, beside PyTorch and the roofline.

    python -m benchmarks.gpu --minutes 8 --output results
    python -m benchmarks.gpu --minutes 8 --output results --root datasets
    python -m benchmarks.gpu --smoke --output results

The stages run in order of importance. Each result is written into `gpu.json` and `gpu.md` of the output folder as soon
as it is there. A stage that does not fit into the minutes is skipped, and a stage that fails is recorded with its
error. The same command continues with the stages that are missing or have failed. With `--root`, the last stage trains
TResNet-M on Corel-5k from random weights. `--smoke` runs one stage of each kind with tiny shapes on a CPU.

Needs only jax, flax, optax and ml_collections, torch and timm for the comparison, and the whole project for `--root`.
`benchmarks/gpu_wheels.sh DIR` downloads what is missing on a machine that has jax, flax, optax, orbax, numpy, torch and
timm; with the argument "corel5k", also what `--root` needs.
"""

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

from aia_jax.cli.exit_codes import execute, fail
from aia_jax.cli.flags import Parser, at_least, local
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_writable, write_bytes, write_json
from benchmarks.gpu_stages import BARS, MODELS, ROOFLINES, Stage, list_stages, step_name
from benchmarks.gpu_table import read_results, table
from benchmarks.kernel_times import Speeds
from benchmarks.step import first_device
from benchmarks.targets import TARGETS
from benchmarks.timing import Worker, machine, versions

_PEERS = ("torch", "timm")
_BARS = {step_name(model, step, "aia_jax"): bar for (model, step), bar in BARS.items()}
_RATE = 1_000  # images per second of the training step, where it was not measured
# Both processes share the GPU, so JAX must not reserve most of its memory.
_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
_SMOKE_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}


class Session:
    """Runs stages until the minutes are over.

    Attributes:
        document: what `gpu.json` holds: `runs`, `smoke`, and `results` by name of the stage. A result has the index of
            its run, or `failed` with the error.
    """

    def __init__(self, output: Path, minutes: float, *, smoke: bool):
        self._start, self._seconds, self._output = time.monotonic(), 60 * minutes, output
        self._workers = {name: Worker() for name in ("jax", "torch")}
        self.document = read_results(output) or {"smoke": smoke, "runs": [], "results": {}}
        if self.document["smoke"] != smoke:
            kind = "without" if smoke else "of"
            raise InputError(f"{output / 'gpu.json'} has results {kind} --smoke; name another folder")
        self.document["runs"].append({"machine": machine(), "versions": versions()})

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self._seconds - (time.monotonic() - self._start)

    def device(self) -> dict[str, Any]:
        """Reads and records the device.

        Raises:
            InputError: JAX finds no usable device.
        """
        device = self._workers["jax"].run(first_device)
        if "failed" in device:
            raise InputError(f"JAX's device cannot be used: {device['failed']}")
        self.document["runs"][-1]["device"] = device
        return device

    def run(self, stage: Stage) -> None:
        """Runs a stage unless its result is there or the time is too short."""
        done = self.document["results"].get(stage.name, {"failed": ""})
        if "failed" not in done:
            return self.say(stage, "already measured")
        missing = [name for name in _PEERS if stage.process == "torch" and not importlib.util.find_spec(name)]
        expected = 0 if self.document["smoke"] else stage.seconds
        if missing:
            row = {"failed": f"not installed: {', '.join(missing)}"}
        elif self.left() < expected:
            return self.say(stage, f"skipped: it needs about {expected:.0f} s")
        else:
            row = self._measure(stage)
            if "failed" in row and self.left() <= 0:
                return self.say(stage, "stopped, because the time is over")
        row["run"] = len(self.document["runs"]) - 1
        self.document["results"][stage.name] = row
        self.write()
        self.say(stage, summary(row) + (f" (bar {_BARS[stage.name]:,})" if stage.name in _BARS else ""))

    def say(self, stage: Stage, text: str) -> None:
        """Prints a line with the minutes that have passed and that are left."""
        left = self.left()
        print(f"[{(self._seconds - left) / 60:5.1f} min, {left / 60:5.1f} left] {stage.name}: {text}", flush=True)

    def write(self) -> None:
        """Writes `gpu.json` and `gpu.md`."""
        write_json(self._output / "gpu.json", self.document)
        write_bytes(self._output / "gpu.md", f"{table(self.document)}\n".encode())

    def stop(self) -> None:
        """Ends the processes."""
        for worker in self._workers.values():
            worker.stop()

    def _measure(self, stage: Stage) -> dict[str, Any]:
        start, worker = time.monotonic(), self._workers[stage.process]
        further = [getattr(self, f"_{name}")() for name in stage.takes]
        try:
            row = worker.run(stage.measure, *stage.arguments, *further, timeout=max(self.left(), 1.0))
        except InputError as error:
            row = {"failed": str(error)}
        if "failed" in row:
            worker.stop()  # the next stage finds its memory free
        return row | {"stage_seconds": time.monotonic() - start}

    def _speeds(self) -> Speeds:
        found = self.document["results"].get(ROOFLINES, {})
        if "failed" in found or not found:
            return Speeds(TARGETS["h200"].bandwidth, TARGETS["h200"].flops)
        return Speeds(found["copy_bytes_per_second"], found["matmul_flops_per_second"])

    def _left(self) -> float:
        return self.left()

    def _rate(self) -> float:
        row = self.document["results"].get(step_name(MODELS[0], "training", "aia_jax"), {})
        return row["images_per_second"]["median"] if "images_per_second" in row else _RATE


def summary(row: dict[str, Any]) -> str:
    """Returns a result in a few words."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "matmul_flops_per_second" in row:
        flops, copied = row["matmul_flops_per_second"] / 1e12, row["copy_bytes_per_second"] / 1e9
        return f"{flops:.1f} TFLOP/s ({row['matmul_dtype']}), {copied:,.0f} GB/s"
    if "pairs_per_second" in row:
        return f"{row['pairs_per_second']['median']:,.0f} pairs/s"
    if "images_per_second" in row:
        return f"{row['images_per_second']['median']:,.1f} img/s"
    return f"{row['epochs']} epochs in {row['seconds']:.0f} s"


def run_all(arguments: argparse.Namespace) -> int:
    """Runs the stages and prints the table; the exit code is 1 if a stage of this project failed."""
    os.environ.update(_ENVIRONMENT)
    if arguments.smoke:
        for name, value in _SMOKE_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    check_writable(arguments.output)
    session = Session(arguments.output, arguments.minutes, smoke=arguments.smoke)
    try:
        device = session.device()
        if device["platform"] == "cpu" and not arguments.smoke:
            raise InputError("JAX finds no GPU; --smoke tries the stages with tiny shapes on a CPU")
        stages = list_stages(device["platform"], smoke=arguments.smoke, root=arguments.root)
        for stage in stages:
            session.run(stage)
    finally:
        session.stop()
    session.write()
    print(f"\n{table(session.document)}")
    rows = {stage.name: session.document["results"].get(stage.name, {}) for stage in stages if stage.process == "jax"}
    failed = [f"{name}: {row['failed']}" for name, row in rows.items() if "failed" in row]
    return fail("; ".join(failed), 1) if failed else 0


def make_parser() -> Parser:
    """Makes the parser."""
    parser = Parser(__doc__)
    parser.add_argument("--output", type=local, required=True, metavar="DIR", help="folder of gpu.json and gpu.md")
    parser.add_argument(
        "--minutes", type=at_least(0.0), default=8.0, metavar="M", help="time for all stages; default: 8"
    )
    parser.add_argument("--root", metavar="DIR", help="folder that contains Corel-5k, for the last stage")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on a CPU; the numbers mean nothing")
    return parser


if __name__ == "__main__":
    sys.exit(execute(make_parser(), run_all))
