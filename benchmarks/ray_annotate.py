"""Compares `aia annotate --ray` on this machine with the local command: speed, memory and results.

    python -m benchmarks.ray_annotate --images FOLDER --photos 200 --output FILE.json

The photos are links to those of FOLDER; if there are too few, several links lead to the same photo. The rate does not
count the start: it is that between the first fifth of the photos and the last photo. The memory is the largest
sum of the proportional set sizes of all processes of the command, sampled each second.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from aia_jax.cli.flags import Parser, local, positive
from aia_jax.data.photo_folder import photo_names
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from benchmarks.comparison import run_command
from benchmarks.timing import machine, progress, versions

_PARTS = {
    "Map(ReadPhotos)": "reading",
    "MapWorker": "actors",
    "-m aia_jax": "command",
}  # part of the command line: name
_SKIPPED = 0.2  # of the photos
_DONE = re.compile(rb"\| *(\d+)/\d+ \[")


def measure(images: Path, sizes: list[int], actors: int, model: str) -> dict[str, Any]:
    """Annotates each number of photos with both commands."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="ray-") as name:
            folder = Path(name)
            _link(images, folder / "photos", size)
            flags = {"local": [], "ray": ["--ray", "--ray_actors", str(actors)]}
            for kind, more in flags.items():
                progress(f"{size:,} photos: {kind}")
                row = _annotate(folder, kind, ["--model", model, *more])
                rows.append({"photos": size, "command": kind, **row})
            rows[-1]["differing_photos"] = _count_differing(folder)
    return {
        "machine": machine(),
        "packages": versions("ray", "pyarrow"),
        "actors": actors,
        "model": Path(model).name,
        "results": rows,
    }


def _link(images: Path, folder: Path, size: int) -> None:
    folder.mkdir()
    names = itertools.cycle(photo_names(images))
    for number, name in zip(range(size), names, strict=False):
        (folder / f"{number:07}{Path(name).suffix}").symlink_to(images.resolve() / name)


def _annotate(folder: Path, kind: str, flags: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "aia_jax", "annotate", "--images", str(folder / "photos"), *flags]
    command += ["--output", str(folder / kind)]
    environment = {**os.environ, "RAY_TMPDIR": str(folder / "r")}
    start, shown, text = time.perf_counter(), [], b""
    memory: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        watch = threading.Thread(target=_watch, args=[process, memory], daemon=True)
        watch.start()
        while part := os.read(process.stderr.fileno(), 1 << 16):
            text = (text + part)[-2000:]
            if found := _DONE.findall(part):
                shown.append((time.perf_counter() - start, int(found[-1])))
    watch.join()
    if process.returncode:
        raise InputError(f"{' '.join(command)} failed: {text.decode(errors='replace')}")
    last = max(number for _, number in shown)
    first = next(pair for pair in shown if pair[1] >= last * _SKIPPED)
    end = next(seconds for seconds, number in shown if number == last)
    rate = (last - first[1]) / (end - first[0]) if end > first[0] else None
    return {"seconds": time.perf_counter() - start, "images_per_second": rate, "peak_bytes": memory}


def _watch(process: subprocess.Popen, peaks: dict[str, int]) -> None:
    """Notes the largest memory of the processes of a command, in total and by kind, until it ends."""
    while process.poll() is None:
        sizes: dict[str, int] = {}
        for pid in [process.pid, *_descendants(process.pid)]:
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue  # it has ended
            kind = next((name for part, name in _PARTS.items() if part in line), "services of Ray")
            size = 1024 * int(re.search(r"Pss:\s+(\d+)", rollup)[1])
            for name in (kind, "total"):
                sizes[name] = sizes.get(name, 0) + size
        for name, size in sizes.items():
            peaks[name] = max(size, peaks.get(name, 0))
        time.sleep(1)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            parent = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


def _count_differing(folder: Path) -> int:
    """Returns the number of photos that one command labels, and the other does not or with other labels or scores."""
    from pyarrow import parquet

    lines = map(json.loads, (folder / "local" / "annotations.jsonl").read_text().splitlines())
    local = {line["image"]: [(label["label"], label["score"]) for label in line["labels"]] for line in lines}
    rows = [row for row in parquet.read_table(folder / "ray").to_pylist() if not row["problem"]]
    on_ray = {row["name"]: list(zip(row["labels"], map(_shortest, row["scores"]), strict=True)) for row in rows}
    twice = len(rows) - len(on_ray)
    return twice + sum(local.get(name) != on_ray.get(name) for name in local.keys() | on_ray.keys())


def _shortest(score: float) -> float:
    import numpy as np

    return float(str(np.float32(score)))


def table(document: dict[str, Any]) -> str:
    """Formats the document as text."""
    lines = [f"{'photos':>8}  {'command':<8}{'s':>8}{'img/s':>8}  peak memory, MB"]
    for row in document["results"]:
        memory = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in sorted(row["peak_bytes"].items()))
        rate = f"{row['images_per_second'] or 0:>8.1f}"
        lines.append(f"{row['photos']:>8,}  {row['command']:<8}{row['seconds']:>8.1f}{rate}  {memory}")
        if "differing_photos" in row:
            lines.append(f"{row['differing_photos']:>8,}  photos differ")
    return "\n".join(lines)


def _measure(arguments: argparse.Namespace) -> None:
    document = measure(arguments.images, arguments.photos, arguments.actors, arguments.model)
    print(table(document))
    if arguments.output:
        write_json(arguments.output, document)


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--images", required=True, type=local, metavar="FOLDER", help="folder of photos")
    parser.add_argument("--photos", type=positive, nargs="+", default=[200], metavar="N", help="numbers; default: 200")
    parser.add_argument("--actors", type=positive, default=2, metavar="N", help="processes of Ray; default: 2")
    parser.add_argument("--model", default="corel5k", metavar="NAME", help="model; default: corel5k")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return parser


if __name__ == "__main__":
    run_command(_make_parser(), _measure)
