"""Measures time and memory of `aia annotate --html` on a folder of photos, and the time until its page shows them.

    python -m benchmarks.annotate_folder --images photos --output FILE.json
    python -m benchmarks.annotate_folder --images photos --megapixels 12
    python -m benchmarks.annotate_folder --images photos --config configs/corel5k.py --config.data.root=datasets

The annotator is the shipped model `open` or, with --config, the config's model with random weights. Every photo gets
the five labels with the highest scores. Time and memory are those of the whole process, with imports and compilation.
Not all photos are used without --full. Run it from the repository.
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
from PIL import Image

from aia_jax.cli.annotate import PAGE
from aia_jax.cli.exit_codes import execute
from aia_jax.cli.flags import Parser, positive
from aia_jax.data.photo_folder import photo_names
from aia_jax.inference.annotation_output import ANNOTATIONS, PROBLEMS
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from aia_jax.utils.model_folders import OPEN
from benchmarks.browser import NoBrowserError, browser
from benchmarks.random_run import write_run
from benchmarks.timing import machine, progress, versions

_TOP = 5  # labels, and so attention maps, per photo
_FEW, _FEW_LARGE = 500, 60  # photos without --full
_NUM_OPENINGS = 3  # of the page, to take a median
_TIMEOUT = 120  # seconds
_PHOTOS_ARE_SHOWN = """
const cards = [...document.querySelectorAll("#grid .card")];
const visible = cards.filter((card) => card.getBoundingClientRect().top < innerHeight);
const images = visible.map((card) => card.querySelector("img"));
return images.length > 0 && images.every((image) => image && image.complete && image.naturalWidth > 0);
"""


def annotate(workdir: Path | None, images: Path, output: Path) -> dict[str, Any]:
    """Runs `aia annotate` in a new process, with the run in `workdir` or, without one, with the model `open`.

    Returns:
        `seconds`, `cpu_seconds` and `peak_bytes` of the process; the number of `photos` with labels and of
        `unreadable` ones; `page_bytes`.

    Raises:
        InputError: the process failed; it has printed the reason.
    """
    command = [sys.executable, "-m", "aia_jax", "annotate", "--html", "--threshold=0", f"--top={_TOP}"]
    command += [f"--images={images}", f"--output={output}", *([f"--workdir={workdir}"] if workdir else [])]
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


def choose_photos(images: Path, folder: Path, count: int | None, megapixels: int | None) -> None:
    """Puts `count` photos of `images` into `folder`, evenly spaced in the order of the names; None: all.

    Args:
        megapixels: enlarge each photo to so many megapixels, as a JPEG of quality 92. None: link to the files.
    """
    names = photo_names(images)
    chosen = names[:: max(len(names) // (count or len(names)), 1)][:count]
    folder.mkdir()
    for number, name in enumerate(chosen):
        path = (images / name).absolute()
        copy = folder / f"{number}{path.suffix}"
        if megapixels is None or not path.is_file():
            copy.symlink_to(path)
            continue
        with Image.open(path) as image:
            scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
            size = [round(side * scale) for side in image.size]
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(copy.with_suffix(".jpg"), quality=92)


def measure(config: ConfigDict | None, images: Path, count: int | None, megapixels: int | None) -> dict[str, Any]:
    """Measures `aia annotate --html`. `seconds_until_shown` needs a browser and is left out without one.

    For `config`, see the module. For the other arguments, see `choose_photos`.
    """
    with tempfile.TemporaryDirectory(prefix="annotate-") as folder:
        progress("chooses the photos")
        choose_photos(images, photos := Path(folder) / "photos", count, megapixels)
        workdir = write_run(Path(folder) / "run", config) if config else None
        before = machine()
        progress(f"annotates {len(list(photos.iterdir())):,} photos")
        found = annotate(workdir, photos, Path(folder) / "annotated")
        progress("opens the page")
        try:
            shown = [seconds_until_shown(Path(folder) / "annotated" / PAGE) for _ in range(_NUM_OPENINGS)]
            found["seconds_until_shown"] = {"median": statistics.median(shown), "min": min(shown), "max": max(shown)}
        except NoBrowserError as error:
            print(f"the time until the page shows photos was not measured: {error}", file=sys.stderr)
    rates = {
        "images_per_second": found["photos"] / found["seconds"],
        "images_per_cpu_second": found["photos"] / found["cpu_seconds"],
    }
    model = {"model": config.model.to_dict(), "image_size": config.data.image_size} if config else {"model": OPEN}
    facts = {**model, "labels_per_photo": _TOP, "enlarged_to_megapixels": megapixels}
    return {"machine": before, "packages": versions(), **facts, **found, **rates}


def table(document: dict[str, Any]) -> str:
    """Formats the numbers as text."""
    model, shown = document["model"], document.get("seconds_until_shown")
    name = model if isinstance(model, str) else "{backbone} + {head}, {dtype}".format_map(model)
    lines = [
        f"model {name}",
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
    if config and config.get("task") != "annotation":
        raise InputError(f"config.task={config.get('task')!r}: this benchmark needs an annotation config")
    if config:
        config.data.image_size = arguments.image_size
    count = None if arguments.full else _FEW_LARGE if arguments.megapixels else _FEW
    document = measure(config, arguments.images, count, arguments.megapixels)
    print(table(document))
    if arguments.output:
        write_json(arguments.output, document)


def main() -> int:
    """Runs the command and returns its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="photos, searched recursively")
    parser.add_argument("--config", help="an annotation config; --config.field=value overrides; default: model open")
    parser.add_argument("--megapixels", type=positive, metavar="M", help="enlarge the photos to M megapixels before")
    parser.add_argument("--full", action="store_true", help=f"all photos, not {_FEW} ({_FEW_LARGE} if enlarged)")
    parser.add_argument("--image_size", type=positive, default=224, metavar="S", help="pixels, instead of the config's")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return execute(parser, _run)


if __name__ == "__main__":
    raise SystemExit(main())
