"""Measures cold and warm starts of commands: seconds of CPU and of wall time until a photo has its labels or its page.

    python -m benchmarks.startup --output startup.json

A cold start has an empty cache: it compiles all programs and encodes the words of the vocabulary. A warm start uses the
cache of the cold start. The models are the shipped ones.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from aia_jax.cli.flags import Parser
from aia_jax.data import scenes
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from benchmarks.comparison import run_command
from benchmarks.timing import machine, progress, versions

_TIMES = ("cpu_seconds", "seconds")


def commands(folder: Path) -> dict[str, list[str]]:
    """Writes a photo to `folder`, and returns the commands that use it, by name."""
    photos, output = folder / "photos", folder / "annotated"
    photos.mkdir()
    Image.fromarray(scenes.draw(0, 0, 200).image).save(photos / "scene.png")
    aia, images = [sys.executable, "-m", "aia_jax"], ["--images", str(photos)]
    annotate = [*aia, "annotate", *images, "--output", str(output)]
    return {
        "import jax": [sys.executable, "-c", "import jax"],
        "aia --help": [*aia, "--help"],
        "first page: aia annotate --html": [*annotate, "--html"],
        "first result: aia search": [*aia, "search", *images, "red star"],
        "first label: aia annotate": annotate,
        "first label: aia annotate --model corel5k": [*annotate, "--model", "corel5k"],
    }


def measure(names: list[str], calls: int) -> dict[str, dict[str, Any]]:
    """Measures commands.

    Args:
        names: keys of `commands`.
        calls: number of cold starts, and of warm starts after each.

    Returns:
        For each command, the medians `cpu_seconds` and `seconds` of `cold` and `warm` starts, and `calls`.
    """
    found = {}
    for name in names:
        times: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
        for _ in range(calls):
            with tempfile.TemporaryDirectory(prefix="startup-") as folder:
                command = commands(Path(folder))[name]
                for kind in ("cold", *["warm"] * calls):
                    progress(f"{name}, {kind}")
                    shutil.rmtree(Path(folder, "annotated"), ignore_errors=True)
                    times[kind].append(_seconds(command, Path(folder, "cache")))
        found[name] = {
            kind: dict(zip(_TIMES, map(statistics.median, zip(*rows, strict=True)), strict=True))
            for kind, rows in times.items()
        } | {"calls": calls}
    return found


def _seconds(command: list[str], cache: Path) -> tuple[float, float]:
    """Runs a command on the CPU, and returns its CPU seconds and its wall time."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "AIA_JAX_CACHE": str(cache)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, end - start


def _run(arguments: argparse.Namespace) -> None:
    """Prints a table and, with `--output`, writes the numbers as JSON."""
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        names = list(commands(Path(folder)))
    before = machine()
    measured = measure(names if arguments.full else names[:4], 3 if arguments.full else 1)
    print(f"{'seconds':<44}{'cold: CPU':>10}{'wall':>8}{'warm: CPU':>12}{'wall':>8}")
    for name, row in measured.items():
        cold, warm = ([row[kind][time] for time in _TIMES] for kind in ("cold", "warm"))
        print(f"{name:<44}{cold[0]:>10.2f}{cold[1]:>8.2f}{warm[0]:>12.2f}{warm[1]:>8.2f}")
    if arguments.output:
        write_json(arguments.output, {"machine": before, "versions": versions(), "starts": measured})


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--full", action="store_true", help="all commands, medians of several calls")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    run_command(parser, _run)
