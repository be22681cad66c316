"""Measures time and memory of `aia annotate --html` on a folder of photos, and the time until its page shows them.

    python -m benchmarks.annotate_folder --images photos --output FILE.json \
        --config.data.root=datasets --config.model.dtype=float32

The annotator has the config's model with random weights. Every photo gets the five labels with the highest scores. Time
and memory are those of the whole process, with imports and compilation. Run it from the repository.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from aia_jax.cli.annotate import PAGE
from aia_jax.cli.exit_codes import execute
from aia_jax.cli.flags import Parser, positive
from aia_jax.data.photo_folder import photo_names
from aia_jax.inference.annotation_output import ANNOTATIONS, PROBLEMS
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from benchmarks.browser import NoBrowserError, browser
from benchmarks.random_run import write_run
from benchmarks.timing import machine, versions

_TOP = 5  # labels, and so attention maps, per photo
_NUM_OPENINGS = 3  # of the page, to take a median
_TIMEOUT = 120  # seconds
_PHOTOS_ARE_SHOWN = """
const cards = [...document.querySelectorAll("#grid .card")];
const visible = cards.filter((card) => card.getBoundingClientRect().top < innerHeight);
const images = visible.map((card) => card.querySelector("img"));
return images.length > 0 && images.every((image) => image && image.complete && image.naturalWidth > 0);
"""


def annotate(workdir: Path, images: Path, output: Path) -> dict[str, Any]:
    """Runs `aia annotate` in a new process.

    Returns:
        `seconds`, `cpu_seconds` and `peak_bytes` of the process; the number of `photos` with labels and of
        `unreadable` ones; `page_bytes`.

    Raises:
        InputError: the process failed; it has printed the reason.
    """
    command = [sys.executable, "-m", "aia_jax", "annotate", "--html", "--threshold=0", f"--top={_TOP}"]
    command += [f"--workdir={workdir}", f"--images={images}", f"--output={output}"]
    environment = {**os.environ, "AIA_JAX_CACHE": str(output.with_name("cache"))}  # an empty cache, as in a first run
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment) as process:
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"aia annotate ended with exit code {process.returncode}")
    return {
        "photos": _num_lines(output / ANNOTATIONS),
        "unreadable": _num_lines(output / PROBLEMS),
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),  # macOS counts bytes
        "page_bytes": (output / PAGE).stat().st_size,
    }


def seconds_until_shown(page: Path) -> float:
    """Returns the seconds that a new browser takes to open the page and to show all photos in its window.

    Raises:
        NoBrowserError: no browser is installed.
        InputError: the photos are not shown after two minutes.
    """
    with browser("none") as driver:
        start = time.perf_counter()
        driver.get(page.as_uri())
        while not driver.execute_script(_PHOTOS_ARE_SHOWN):
            if time.perf_counter() - start > _TIMEOUT:
                raise InputError(f"{page.name} shows no photos after {_TIMEOUT} seconds")
            time.sleep(0.005)
        return time.perf_counter() - start


def measure(config: ConfigDict, images: Path) -> dict[str, Any]:
    """Measures a folder of photos; `seconds_until_shown` needs a browser and is left out without one."""
    with tempfile.TemporaryDirectory(prefix="annotate-") as folder:
        workdir = write_run(Path(folder) / "run", config)
        before = machine()
        found = annotate(workdir, images, Path(folder) / "annotated")
        try:
            shown = [seconds_until_shown(Path(folder) / "annotated" / PAGE) for _ in range(_NUM_OPENINGS)]
            found["seconds_until_shown"] = {"median": statistics.median(shown), "min": min(shown), "max": max(shown)}
        except NoBrowserError as error:
            print(f"the time until the page shows photos was not measured: {error}", file=sys.stderr)
    rates = {
        "images_per_second": found["photos"] / found["seconds"],
        "images_per_cpu_second": found["photos"] / found["cpu_seconds"],
    }
    facts = {"model": config.model.to_dict(), "image_size": config.data.image_size, "labels_per_photo": _TOP}
    return {"machine": before, "packages": versions(), **facts, **found, **rates}


def table(document: dict[str, Any]) -> str:
    """Formats the numbers as text."""
    model, shown = document["model"], document.get("seconds_until_shown")
    lines = [
        f"{model['backbone']} + {model['head']} at {document['image_size']} px, {model['dtype']}",
        f"photos                     {document['photos']:>10,}  and {document['unreadable']:,} unreadable",
        f"images per second          {document['images_per_second']:>10.1f}  in {document['seconds']:,.0f} s",
        f"images per CPU second      {document['images_per_cpu_second']:>10.1f}",
        f"peak memory                {document['peak_bytes'] / 1e6:>10,.0f} MB",
        f"{PAGE:<27}{document['page_bytes'] / 1e6:>10,.1f} MB",
    ]
    if shown:
        spread = f"{shown['min']:.2f} to {shown['max']:.2f}"
        lines.append(f"seconds until photos show  {shown['median']:>10.2f}  ({spread})")
    return "\n".join(lines)


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _run(arguments: argparse.Namespace) -> None:
    photo_names(arguments.images)  # raises before anything is computed
    config = arguments.config
    if config.get("task") != "annotation":
        raise InputError(f"config.task={config.get('task')!r}: this benchmark needs an annotation config")
    config.data.image_size = arguments.image_size
    document = measure(config, arguments.images)
    print(table(document))
    if arguments.output:
        write_json(arguments.output, document)


def main() -> int:
    """Runs the command and returns its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="photos, searched recursively")
    parser.add_argument(
        "--config", default="configs/corel5k.py", help="an annotation config; --config.field=value overrides"
    )
    parser.add_argument("--image_size", type=positive, default=224, metavar="S", help="pixels, instead of the config's")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return execute(parser, _run)


if __name__ == "__main__":
    raise SystemExit(main())
