"""Measures what the start of commands costs: CPU seconds of all their processes, medians of several calls.

    python -m benchmarks.startup --workdir runs/demo --search_workdir runs/demo_search --output startup.json

The runs are those of `configs/demo.py` and `configs/demo_search.py`. A call before the measured calls compiles the
programs and fills the caches.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from aia_jax.cli.flags import Parser, positive
from aia_jax.data import scenes
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from benchmarks.comparison import run_command
from benchmarks.timing import machine, versions


def measure(workdir: Path, search_workdir: Path, calls: int) -> dict[str, dict[str, Any]]:
    """Measures the commands.

    Returns:
        For each command `median`, `min` and `max` in CPU seconds, and `calls`.
    """
    aia = [sys.executable, "-m", "aia_jax"]
    found = {}
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        photos, output = Path(folder, "photos"), Path(folder, "annotated")
        photos.mkdir()
        Image.fromarray(scenes.draw(0, 0, 200).image).save(photos / "scene.png")
        one = ["--images", str(photos), "--batch_size", "1"]
        searched = [*one, "--annotator", str(workdir)]
        commands = {
            "import jax": [sys.executable, "-c", "import jax"],
            "import aia_jax": [sys.executable, "-c", "import aia_jax"],
            "aia --help": [*aia, "--help"],
            "aia annotate --help": [*aia, "annotate", "--help"],
            "train.py --help": [*aia, "train", "--help"],
            "aia annotate, one photo": [*aia, "annotate", "--workdir", str(workdir), *one, "--output", str(output)],
            "aia search, one photo": [*aia, "search", "--workdir", str(search_workdir), *searched, "red star"],
        }
        for name, command in commands.items():
            seconds = []
            for _ in range(calls + 1):
                shutil.rmtree(output, ignore_errors=True)
                seconds.append(_cpu_seconds(command))
            rest = seconds[1:]
            found[name] = {"median": statistics.median(rest), "min": min(rest), "max": max(rest), "calls": calls}
    return found


def _cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _run(arguments: argparse.Namespace) -> None:
    """Prints a table and, with `--output`, writes the numbers as JSON."""
    measured = measure(arguments.workdir, arguments.search_workdir, arguments.calls)
    lines = [f"{name:<24}{row['median']:>7.2f} s of CPU, median of {row['calls']}" for name, row in measured.items()]
    document = {"machine": machine(), "versions": versions(), "cpu_seconds": measured}
    print("\n".join(lines))
    if arguments.output:
        write_json(arguments.output, document)


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="folder of a run of configs/demo.py")
    parser.add_argument(
        "--search_workdir", required=True, type=Path, metavar="DIR", help="folder of a run of configs/demo_search.py"
    )
    parser.add_argument("--calls", type=positive, default=5, metavar="N", help="measured calls; default: 5")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    run_command(parser, _run)
