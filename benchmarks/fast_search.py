"""Measures an index of millions of photos: its build, its size, and exact and fast searches.

    python -m benchmarks.fast_search --output FILE.json
    python -m benchmarks.fast_search --photos 10000000 --index FOLDER --output FILE.json

The photos are random vectors of length 1, in 256 dimensions. Random vectors are the hardest case for a search: no photo
is much nearer to the query than many others. 10 million of them need 8 GB of disk space, and at most 1 GB more while
parts are joined. The folder of the index is removed at the end.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aia_jax.cli.flags import Parser, positive
from aia_jax.inference.index_parts import (
    PhotoNames,
    add_array,
    find_parts,
    join_small_parts,
    slices,
    write_part,
)
from aia_jax.inference.vector_search import (
    FAST_SLICE,
    SMALL,
    check_fast_search,
    exact_search,
    fast_search,
    small_vectors,
)
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_room, os_errors_as_input_errors, write_json
from benchmarks.comparison import run_command
from benchmarks.timing import isolated, machine, progress, versions

_SIZE = 256  # dimensions
_FIRST_PART, _PART_SIZE = 4096, 256  # photos of the parts that are written, and of the first size class of an index
_CLASSES, _CLASSES_OF_PHOTO = 1000, 32
_COUNT = 10  # photos to find
_SLICES = {"exact": 4096, "fast": FAST_SLICE}
_SEARCHES = {"exact": exact_search, "fast": fast_search}


def random_vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns random directions, float32 `[count, 256]`."""
    vectors = rng.standard_normal((count, _SIZE), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_rows(num_photos: int, classes: bool) -> Iterator[dict[str, np.ndarray]]:
    """Yields the arrays of 4096 photos at a time."""
    rng = np.random.default_rng(0)
    for start in range(0, num_photos, _FIRST_PART):
        count = min(_FIRST_PART, num_photos - start)
        rows = {"vectors": random_vectors(rng, count).astype(np.float16)}
        if classes:
            rows["classes"] = rng.integers(0, _CLASSES, (count, _CLASSES_OF_PHOTO), np.uint16)
            probabilities = rng.dirichlet(np.full(_CLASSES_OF_PHOTO, 0.2), count)
            rows["probabilities"] = probabilities.astype(np.float16)
        yield rows


def build(folder: Path, num_photos: int, classes: bool) -> dict[str, Any]:
    """Builds an index. Returns the seconds of its steps, the numbers of parts, and its bytes on disk."""
    parts, seconds, done = [], {"vectors made": 0.0, "parts written": 0.0, "parts joined": 0.0}, 0
    start = time.perf_counter()

    def add(step: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[step] = seconds.get(step, 0) + now - start
        start = now

    for rows in random_rows(num_photos, classes):
        add("vectors made")
        count = len(rows["vectors"])
        photos = ((f"photos/2024/IMG_{row:09}.jpg", 3_000_000, row) for row in range(done, done + count))
        parts.append(write_part(folder, photos, {name: [values] for name, values in rows.items()}))
        done += count
        add("parts written")
        parts = join_small_parts(folder, parts, _PART_SIZE)
        add("parts joined")
    for part in parts:
        if len(part) >= _FIRST_PART:
            add_array(part, SMALL, lambda rows: small_vectors(rows["vectors"]))
    add("int8 vectors")
    sizes: dict[str, int] = {}
    for file in folder.rglob("*.npy"):
        sizes[file.stem] = sizes.get(file.stem, 0) + file.stat().st_size
    return {"seconds": seconds, "parts": len(parts), "bytes": sizes, "peak_bytes": _memory("VmHWM")}


def search_all(folder: Path, kind: str, known_class: bool, num_queries: int) -> dict[str, Any]:
    """Searches an index that no page of memory holds at first.

    Returns:
        The seconds to open the index and of the first query; the medians of the others; the peak of the resident
        memory, which includes mapped files, before and after; the memory that no file backs; and the photos found.
    """
    _forget_files(folder)
    rng, before = np.random.default_rng(1), _memory("VmHWM")
    values = rng.random(_CLASSES, np.float32) ** 8 / 2 if known_class else None
    start = time.perf_counter()
    parts = find_parts(folder)
    mapped = slices([(part.map()[0], part.live) for part in parts], _SLICES[kind])
    names = PhotoNames(parts)
    opened, seconds, cpu_seconds, found = time.perf_counter() - start, [], [], []
    for vector in random_vectors(rng, num_queries + 1):
        start, start_cpu = time.perf_counter(), time.process_time()
        rows = _SEARCHES[kind](mapped, vector, values, _COUNT).rows.tolist()
        [names[row] for row in rows]
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - start_cpu)
        found.append(rows)
    return {
        "open_seconds": opened,
        "first_seconds": seconds[0],
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu_seconds[1:]),
        "peak_bytes_before": before,
        "peak_bytes": _memory("VmHWM"),
        "anonymous_bytes": _memory("RssAnon"),
        "found": found,
    }


def table(document: dict[str, Any]) -> str:
    """Formats the results as text."""
    built = document["build"]
    lines = [f"{document['photos']:,} photos in {built['parts']} parts"]
    lines += [f"{step:<24}{seconds:10.1f} s" for step, seconds in built["seconds"].items()]
    lines += [f"{f'{name}.npy':<24}{size / 1e9:10.3f} GB" for name, size in sorted(built["bytes"].items())]
    lines += [f"{'memory of the build':<24}{built['peak_bytes'] / 1e9:10.2f} GB"]
    titles = ("open s", "first s", "median s", "CPU s", "peak GB", "own GB", f"recall@{_COUNT}")
    lines += ["", f"{'search':<24}" + "".join(f"{title:>10}" for title in titles)]
    for row in document["searches"]:
        memory = (row["peak_bytes"] / 1e9, row["anonymous_bytes"] / 1e9)
        numbers = (
            row["open_seconds"],
            row["first_seconds"],
            row["seconds"],
            row["cpu_seconds"],
            *memory,
            row["recall"],
        )
        lines.append(f"{row['name']:<24}" + "".join(f"{number:10.3f}" for number in numbers))
    return "\n".join(lines)


def measure(arguments: argparse.Namespace) -> None:
    """Builds the index and searches it, each in a new process. Prints and writes the results."""
    check_fast_search()
    if arguments.index and arguments.index.exists() and any(arguments.index.iterdir()):
        raise InputError(f"--index {arguments.index} is not empty; name a new folder")
    num_bytes = arguments.photos * (3 * _SIZE + 60 + 4 * _CLASSES_OF_PHOTO * arguments.classes)
    folder = Path(arguments.index or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    searches = []
    try:
        with os_errors_as_input_errors(folder, num_bytes, "--index names another folder"):
            check_room(folder, num_bytes)
        progress(f"builds an index of {num_bytes / 1e9:.1f} GB")
        built = isolated(build, folder, arguments.photos, arguments.classes)
        if "failed" in built:
            raise InputError(f"the index could not be built: {built['failed']}")
        for known_class in (False, True) if arguments.classes else (False,):
            exact: list[list[int]] = []
            for kind in _SEARCHES:
                progress(f"{kind} search")
                row = isolated(search_all, folder, kind, known_class, arguments.queries)
                if "failed" in row:
                    raise InputError(f"the {kind} search failed: {row['failed']}")
                found = row.pop("found")
                exact = exact or found
                recall = np.mean([len(set(one) & set(other)) / _COUNT for one, other in zip(found, exact, strict=True)])
                searches.append({"name": kind + ", with classes" * known_class, **row, "recall": float(recall)})
    finally:
        shutil.rmtree(folder)
    document = {
        **{"machine": machine(), "packages": versions(), "photos": arguments.photos, "dimensions": _SIZE},
        **{"queries": arguments.queries, "build": built, "searches": searches},
    }
    print(table(document))
    if arguments.output:
        write_json(arguments.output, document)


def _forget_files(folder: Path) -> None:
    """Removes the files of an index from the system's page cache, so that the first query reads the disk."""
    for file in folder.rglob("*.npy"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _memory(field: str) -> int:
    """Returns bytes of this process's memory: VmHWM, its peak with mapped files, or RssAnon, its own now."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(field)))


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--photos", type=positive, default=200_000, metavar="N", help="photos in the index")
    parser.add_argument("--queries", type=positive, default=20, metavar="N", help="queries after the first one")
    classes = "also ImageNet classes, as with the model open, and queries that name a class"
    parser.add_argument("--classes", action="store_true", help=classes)
    parser.add_argument("--index", type=Path, metavar="DIR", help="new folder for the index; default: a temporary one")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return parser


if __name__ == "__main__":
    run_command(_make_parser(), measure)
