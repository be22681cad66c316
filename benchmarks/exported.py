"""Measures the images per second of files of `aia export` and of `aia_jax.load`, in one process.

aia export --workdir runs/demo --output exported --format both
python -m benchmarks.exported --workdir runs/demo --exported exported --output FILE.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aia_jax.cli.flags import Parser, positive
from aia_jax.inference.annotator import load_trained_annotator
from aia_jax.inference.export import import_onnx, load_stablehlo
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from benchmarks.comparison import run_command
from benchmarks.timing import machine, progress, versions

Call = Callable[[np.ndarray], Any]


def runners(annotator: TrainedAnnotator, folder: Path, explain: bool) -> dict[str, Call]:
    """Returns the callables to time by name: the annotator, and each exported file that exists."""
    found: dict[str, Call] = {"aia_jax.load": lambda images: annotator.predict(images, explain=explain)}
    if (path := folder / "model.stablehlo").is_file():
        found["StableHLO"] = load_stablehlo(path.read_bytes())
    if (path := folder / "model.onnx").is_file():
        found["onnxruntime"] = import_onnx().load_onnx(path.read_bytes())
    return found


def seconds_of_calls(calls: dict[str, Call], images: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Times each callable in turn, so that other work on the machine affects all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(images))
            if number:  # the first round compiles
                times[name].append(time.perf_counter() - start)
    return times


def measure(arguments: argparse.Namespace) -> None:
    """Times the model and its files at each batch size. Prints and writes the rates."""
    folder, rows = arguments.exported, []
    try:
        facts = json.loads((folder / "model.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'model.json'}: {error}; --exported needs a folder that aia export wrote") from None
    for batch_size in arguments.batch_size or [1, 16]:
        progress(f"batches of {batch_size}")
        annotator = load_trained_annotator(arguments.workdir, batch_size=batch_size, dtype=facts["model"]["dtype"])
        explain = len(facts["outputs"]) > 1
        size = annotator.image_size
        images = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), np.uint8)
        times = seconds_of_calls(runners(annotator, folder, explain), images, arguments.rounds)
        for name, taken in times.items():
            rates = [batch_size / seconds for seconds in taken]
            median, slowest, fastest = statistics.median(rates), min(rates), max(rates)
            rows.append({"batch_size": batch_size, "what": name, "median": median, "min": slowest, "max": fastest})
            print(f"{batch_size:>4}  {name:<13}{median:10,.1f} img/s  ({slowest:,.1f} to {fastest:,.1f})")
    if arguments.output:
        copied = {name: facts[name] for name in ("model", "image_size", "files")}
        document = {"machine": machine(), "packages": versions(), **copied, "rounds": arguments.rounds}
        write_json(arguments.output, {**document, "images_per_second": rows})


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the annotation run")
    parser.add_argument("--exported", required=True, type=Path, metavar="DIR", help="output folder of aia export")
    parser.add_argument("--batch_size", type=positive, action="append", metavar="N", help="the default is 1 and 16")
    parser.add_argument("--rounds", type=positive, default=15, metavar="N", help="timed calls of each")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return parser


if __name__ == "__main__":
    run_command(_make_parser(), measure)
