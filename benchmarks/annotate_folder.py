"""`aia annotate --html` of a folder of photos, as a user starts it: time, memory, and how soon its page shows them.

    python -m benchmarks.annotate_folder --images photos --output FILE.json \
        --config.data.root=datasets --config.model.dtype=float32

The annotator is that of a config, its weights as they are drawn: every photo gets the five labels that score highest.
What is counted begins and ends with the process: imports and compilation are in it. Run it where `configs/` lies.
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

_TOP = 5  # labels of a photo, and so maps in the page
_OPENED = 3  # times that the page is
_PATIENCE = 120  # seconds
_SHOWN = """
const cards = [...document.querySelectorAll("#grid .card")];
const inSight = cards.filter((card) => card.getBoundingClientRect().top < innerHeight);
const images = inSight.map((card) => card.querySelector("img"));
return images.length > 0 && images.every((image) => image && image.complete && image.naturalWidth > 0);
"""


def annotate(workdir: Path, images: Path, output: Path) -> dict[str, Any]:
    """Runs `aia annotate` in a process of its own.

    Returns:
        `seconds` and `cpu_seconds` of the process, `peak_bytes` that it held, `photos` that have labels, those that are
        `unreadable`, `page_bytes`.

    Raises:
        InputError: it failed; it has told why.
    """
    command = [sys.executable, "-m", "aia_jax", "annotate", "--html", "--threshold=0", f"--top={_TOP}"]
    command += [f"--workdir={workdir}", f"--images={images}", f"--output={output}"]
    environment = {**os.environ, "AIA_JAX_CACHE": str(output.with_name("cache"))}  # so that it compiles, as at first
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
    """From asking a browser that was just started for the page until all photos in its window are there.

    Raises:
        NoBrowserError: there is none.
        InputError: they are not shown after two minutes.
    """
    with browser("none") as driver:
        start = time.perf_counter()
        driver.get(page.as_uri())
        while not driver.execute_script(_SHOWN):
            if time.perf_counter() - start > _PATIENCE:
                raise InputError(f"{page.name} shows no photos after {_PATIENCE} seconds")
            time.sleep(0.005)
        return time.perf_counter() - start


def measure(config: ConfigDict, images: Path) -> dict[str, Any]:
    """The numbers of a folder of photos, `seconds_until_shown` among them where there is a browser."""
    with tempfile.TemporaryDirectory(prefix="annotate-") as folder:
        workdir = write_run(Path(folder) / "run", config)
        before = machine()
        found = annotate(workdir, images, Path(folder) / "annotated")
        try:
            shown = [seconds_until_shown(Path(folder) / "annotated" / PAGE) for _ in range(_OPENED)]
            found["seconds_until_shown"] = {"median": statistics.median(shown), "min": min(shown), "max": max(shown)}
        except NoBrowserError as error:
            print(f"how soon the page shows photos was not measured: {error}", file=sys.stderr)
    rates = {
        "images_per_second": found["photos"] / found["seconds"],
        "images_per_cpu_second": found["photos"] / found["cpu_seconds"],
    }
    facts = {"model": config.model.to_dict(), "image_size": config.data.image_size, "labels_per_photo": _TOP}
    return {"machine": before, "packages": versions(), **facts, **found, **rates}


def table(document: dict[str, Any]) -> str:
    """The numbers as text."""
    model, shown = document["model"], document.get("seconds_until_shown")
    lines = [
        f"{model['backbone']} + {model['head']} at {document['image_size']} px, {model['dtype']}",
        f"photos                     {document['photos']:>10,}  and {document['unreadable']:,} that cannot be read",
        f"images a second            {document['images_per_second']:>10.1f}  in {document['seconds']:,.0f} s",
        f"images a CPU second        {document['images_per_cpu_second']:>10.1f}",
        f"memory at most             {document['peak_bytes'] / 1e6:>10,.0f} MB",
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
    photo_names(arguments.images)  # told before anything is computed
    config = arguments.config
    if config.get("task") != "annotation":
        raise InputError(f"config.task={config.get('task')!r}: labels are those of an annotation config")
    config.data.image_size = arguments.image_size
    document = measure(config, arguments.images)
    print(table(document))
    if arguments.output:
        write_json(arguments.output, document)


def main() -> int:
    """The command; an exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="photos, searched recursively")
    parser.add_argument("--config", default="configs/corel5k.py", help="of annotation; --config.field=value overrides")
    parser.add_argument(
        "--image_size", type=positive, default=224, metavar="S", help="pixels; the config's do not count"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return execute(parser, _run)


if __name__ == "__main__":
    raise SystemExit(main())
