"""Measures how the costs of commands grow with the number of photos: CPU time, memory and the size of the output.

    python -m benchmarks.growth --output FILE.json
    python -m benchmarks.growth --full --output FILE.json

The photos are generated, 64 px wide, and the annotator is tiny and has random weights. `--full` adds 20,000 photos. The
costs for 50 photos are subtracted, so that imports and the loading of compiled programs do not hide the growth. The
exponent is the slope of log(cost) over log(photos): 1 is linear.
"""

import argparse
import contextlib
import csv
import io
import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from aia_jax.cli.devices import enable_compilation_cache
from aia_jax.cli.flags import Parser
from aia_jax.cli.main import main
from aia_jax.configs import custom
from aia_jax.data import scenes
from aia_jax.evaluation.annotation_page import write_page
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.evaluation.evaluator import Candidate, Scored, write_npz
from aia_jax.tasks.registry import make_task
from aia_jax.training.model_arrays import split_model
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from benchmarks.comparison import run_command
from benchmarks.random_run import write_run
from benchmarks.timing import machine, progress, versions

STEPS = ("import", "preparation", "evaluation", "scores.npz", "report", "annotation")
COSTS = ("cpu_seconds", "peak_bytes", "output_bytes")
_SIZES, _FULL_SIZE = (200, 2000), 20_000
_FEW, _DISTINCT = 50, 16  # photos whose costs are subtracted, more than a batch; and different photos
_LABELS, _PIXELS = 20, 64
_TEXTS = {"title": "growth", "limit": "0.5"}  # of the page

Costs = dict[str, dict[str, float]]  # for each step, its `COSTS`


def measure_steps(folder: Path, count: int) -> Costs:
    """Measures the costs of all steps for `count` photos, with files in the new folder `folder`.

    Raises:
        InputError: a command failed; it has printed the reason.
    """
    photos, table, data, output = (folder / name for name in ("photos", "labels.csv", "data", "output"))
    _write_photos(photos, table, count)
    costs: Costs = {}

    def step(name: str, written: Path, call: Callable[..., object], *arguments: Any, **options: Any) -> None:
        progress(f"{count:,} photos: {name}")
        costs[name] = _costs(partial(call, *arguments, **options), written)

    flags = ("--labels", table, "--images", photos, "--test_fraction", 0.9, "--output", data)
    step("import", data, _run, "import-labels", *flags)
    config = _config(data, folder / "cache")
    task = make_task(config)
    step("preparation", folder / "cache", lambda: [task.split(split) for split in ("train", "test")])
    weights = split_model(task.build_model(nnx.Rngs(0)))[1]
    workdir = write_run(folder / "run", config, weights)
    step("evaluation", output, evaluate, config, workdir, output)
    with np.load(output / "scores.npz") as arrays:
        scores = dict(arrays)
    step("scores.npz", output / "scores.npz", write_npz, output / "scores.npz", **scores)
    scored = Scored(Candidate("random", task, weights, {}, {}.get), scores["scores"], {}, [])
    step(
        "report", folder / "report.html", write_page, folder / "report.html", task.split("test"), scored, 0.5, **_TEXTS
    )
    flags = ("--workdir", workdir, "--images", photos, "--html", "--threshold=0", "--top=5")
    step("annotation", folder / "annotated", _run, "annotate", *flags, "--output", folder / "annotated")
    return costs


def exponents(sizes: list[int], costs: list[float]) -> dict[str, float | None]:
    """Returns the slope of log(cost) over log(size), from all sizes and from the last two; None without a cost."""
    if min(costs) <= 0:
        return {"all": None, "last_two": None}
    logs = np.log(sizes), np.log(costs)
    slope = lambda part: float(np.polyfit(logs[0][part], logs[1][part], 1)[0])  # noqa: E731
    return {"all": slope(slice(None)), "last_two": slope(slice(-2, None))}


def measure(full: bool) -> dict[str, Any]:
    """Measures the steps for all numbers of photos."""
    sizes, started_on = [*_SIZES, *[_FULL_SIZE] * full], machine()
    enable_compilation_cache()
    found = []
    for count in (_FEW, _FEW, *sizes):  # the first pass compiles
        with tempfile.TemporaryDirectory(prefix="growth-") as folder:
            found.append(measure_steps(Path(folder), count))
    _, few, *found = found
    rows = []
    for step, cost in itertools.product(STEPS, COSTS):
        values = [costs[step][cost] - few[step][cost] for costs in found]
        rows.append(
            {
                "step": step,
                "cost": cost,
                "values": values,
                "exponent": exponents([size - _FEW for size in sizes], values),
            }
        )
    return {"machine": started_on, "packages": versions(), "photos": sizes, "subtracted": few, "results": rows}


def table(document: dict[str, Any]) -> str:
    """Formats the document as text: costs, and the exponents from all sizes and from the last two."""
    sizes = document["photos"]
    lines = [f"{'':<26}{''.join(f'{size:>12,}' for size in sizes)}{'exponent':>10}{'last two':>10}"]
    for row in document["results"]:
        scale, unit = (1, "s of CPU") if row["cost"] == "cpu_seconds" else (1e6, f"MB {row['cost'].partition('_')[0]}")
        values = "".join(f"{value / scale:>12.2f}" for value in row["values"])
        slopes = "".join("         -" if slope is None else f"{slope:>10.2f}" for slope in row["exponent"].values())
        lines.append(f"{row['step']:<13}{unit:<13}{values}{slopes}")
    return "\n".join(lines)


def _config(data: Path, cache: Path) -> ConfigDict:
    config = custom.get_config("whole")
    config.data.update({"root": str(data), "cache_dir": str(cache), "image_size": 32})
    config.model.update({"backbone": "tresnet_tiny", "dtype": "float32", "hidden_size": 32, "num_heads": 2})
    config.model.feedforward_size = 32
    config.batch_size = config.eval.batch_size = 16
    config.init_labels = ""
    return config


def _write_photos(folder: Path, table: Path, count: int) -> None:
    """Writes `count` JPEG files of a few different scenes, and a table with three random labels of each."""
    folder.mkdir(parents=True)
    files = [io.BytesIO() for _ in range(_DISTINCT)]
    for number, file in enumerate(files):
        Image.fromarray(scenes.draw(0, number, _PIXELS).image).save(file, "JPEG", quality=90)
    rng = np.random.default_rng(0)
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "labels"))
        for number in range(count):
            name = f"{number:06}.jpg"
            (folder / name).write_bytes(files[number % _DISTINCT].getvalue())
            labels = rng.choice(_LABELS, 3, replace=False)
            rows.writerow((name, "|".join(f"label {label}" for label in labels)))


def _run(*arguments: object) -> None:
    if code := main(list(map(str, arguments))):
        raise InputError(f"aia {arguments[0]} ended with exit code {code}")


def _costs(call: Callable[[], object], written: Path) -> dict[str, float]:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak memory starts again; only Linux can do this
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        call()
    seconds = time.process_time() - start
    files = [written] if written.is_file() else [path for path in written.rglob("*") if not path.is_symlink()]
    num_bytes = sum(path.stat().st_size for path in files if path.is_file())
    return {"cpu_seconds": seconds, "peak_bytes": _peak(), "output_bytes": num_bytes}


def _peak() -> int:
    """Returns the peak memory of this process in bytes."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _measure(arguments: argparse.Namespace) -> None:
    document = measure(arguments.full)
    print(table(document))
    if arguments.output:
        write_json(arguments.output, document)


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--full", action="store_true", help=f"also measure {_FULL_SIZE:,} photos")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return parser


if __name__ == "__main__":
    run_command(_make_parser(), _measure)
