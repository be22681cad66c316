"""Measures cold and warm starts of commands: CPU and wall time until the first label, page, or training step.

    python -m benchmarks.startup --output startup.json

A cold start has an empty cache: it compiles all programs and encodes the words of the vocabulary. A warm start uses the
cache of the cold start. The models are the shipped ones. The training runs end after their first step. Run it from the
repository.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from aia_jax.cli.flags import Parser, positive
from aia_jax.data import scenes
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from benchmarks.comparison import add_full_argument, run_command
from benchmarks.timing import machine, progress, versions

_TIMES = ("cpu_seconds", "seconds")
_QUICK = 5  # number of commands without --full
_LARGE = {"model.backbone": "tresnet_m", "data.image_size": 448, "batch_size": 4, "data.num_train": 16}


def commands(folder: Path) -> dict[str, list[str]]:
    """Writes a photo to `folder`, and returns the commands that use it, by name."""
    photos, output = folder / "photos", folder / "annotated"
    photos.mkdir()
    Image.fromarray(scenes.draw(0, 0, 200).image).save(photos / "scene.png")
    aia, images = [sys.executable, "-m", "aia_jax"], ["--images", str(photos)]
    annotate = [*aia, "annotate", *images, "--output", str(output)]
    first_step = [sys.executable, "-c", "from benchmarks.startup import first_step; first_step()"]
    train = [*first_step, "train", "--config", "demo", "--workdir", str(folder / "run")]
    return {
        "import jax": [sys.executable, "-c", "import jax"],
        "aia --help": [*aia, "--help"],
        "first page: aia annotate --html": [*annotate, "--html"],
        "first result: aia search": [*aia, "search", *images, "red star"],
        "first training step: demo": train,
        "first label: aia annotate": annotate,
        "first label: aia annotate --model corel5k": [*annotate, "--model", "corel5k"],
        "first training step: TResNet-M, 448 px": [*train, *(f"--config.{name}={_LARGE[name]}" for name in _LARGE)],
    }


def first_step() -> None:
    """Runs the command of `sys.argv`, `aia train`, and ends the process after the first training step."""
    import jax

    from aia_jax.cli.main import main
    from aia_jax.training import trainer

    make = trainer.make_train_step

    def make_train_step(*arguments: Any, **options: Any) -> Callable[..., None]:
        step = make(*arguments, **options)

        def once(*inputs: Any) -> None:
            jax.block_until_ready(step(*inputs))
            os._exit(0)

        return once

    trainer.make_train_step = make_train_step
    sys.exit(main(sys.argv[1:]))


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
                    for output in ("annotated", "run"):
                        shutil.rmtree(Path(folder, output), ignore_errors=True)
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
    measured = measure(names if arguments.full else names[:_QUICK], arguments.calls)
    print(f"{'seconds':<44}{'cold: CPU':>10}{'wall':>8}{'warm: CPU':>12}{'wall':>8}")
    for name, row in measured.items():
        cold, warm = ([row[kind][time] for time in _TIMES] for kind in ("cold", "warm"))
        print(f"{name:<44}{cold[0]:>10.2f}{cold[1]:>8.2f}{warm[0]:>12.2f}{warm[1]:>8.2f}")
    if arguments.output:
        write_json(arguments.output, {"machine": before, "versions": versions(), "starts": measured})


if __name__ == "__main__":
    parser = Parser(__doc__)
    add_full_argument(parser, f"all commands, not {_QUICK}")
    parser.add_argument(
        "--calls", type=positive, default=1, metavar="N", help="N cold starts, and N warm ones after each"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    run_command(parser, _run)
