"""Times a search of `aia search` in a memory-mapped index of many photos: the shortlist and the whole model.

    python -m benchmarks.search_folder --workdir runs/amc --images 100000 --output FILE.json

The index holds random noise in the shape of the run's photos. It needs disk space: 1.8 GB for 100,000 photos with 36
cells of 256 channels.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from aia_jax.cli.flags import Parser, positive
from aia_jax.data.vocabulary import SPECIAL_WORDS
from aia_jax.inference.searcher import PhotoSearch
from aia_jax.utils.files import check_room, os_errors_as_input_errors, write_json
from benchmarks.comparison import run_command
from benchmarks.timing import machine, time_windows, versions

_PART = 512
_COUNT = 10


def synthetic_parts(folder: Path, search: PhotoSearch, num_photos: int) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Writes and memory-maps the parts of an index: rows of a few noise images, in random order in each part."""
    rng, size = np.random.default_rng(0), search.annotator.image_size
    images = rng.integers(0, 256, (search.annotator.batch_size, size, size, 3), np.uint8)
    rows = search.compute(images)
    parts = []
    for start in range(0, num_photos, _PART):
        own = rng.integers(0, len(images), min(_PART, num_photos - start))
        part = folder / f"rows-{start:09}"
        part.mkdir()
        for name, values in rows.items():
            np.save(part / f"{name}.npy", values[own])
        parts.append(({path.stem: np.load(path, mmap_mode="r") for path in part.glob("*.npy")}, np.arange(len(own))))
    return parts


def measure(arguments: argparse.Namespace) -> None:
    """Times searches; prints and writes the seconds."""
    search = PhotoSearch(arguments.workdir, arguments.annotator)
    query = next(word for word in search.vocabulary.ids if word not in SPECIAL_WORDS)
    one = sum(values.nbytes for values in search.compute(_blank(search)).values())
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        num_bytes = one * arguments.images
        with os_errors_as_input_errors(Path(folder), num_bytes, "--scratch selects another folder"):
            check_room(Path(folder), num_bytes)
            parts = synthetic_parts(Path(folder), search, arguments.images)
        start = time.perf_counter()
        search.search(query, parts, count=_COUNT, shortlist=arguments.shortlist)
        first = time.perf_counter() - start
        encoded = search.encode(query)
        calls = {
            "shortlist alone": lambda: search.rough_scores(encoded, parts),
            "search": lambda: search.search(query, parts, count=_COUNT, shortlist=arguments.shortlist),
        }
        seconds = {
            name: time_windows(lambda calls, call=call: [call() for _ in range(calls)], windows=5, seconds=0)
            for name, call in calls.items()
        }
    shape = " x ".join(map(str, parts[0][0]["cells"].shape[1:]))
    print(f"{arguments.images:,} photos of {shape} cells, {num_bytes / 1e9:.2f} GB; shortlist {arguments.shortlist:,}")
    print(f"first search, with compilation: {first:.2f} s")
    for name, timed in seconds.items():
        print(f"{name:<18}{timed['median']:8.3f} s  ({timed['min']:.3f} to {timed['max']:.3f})")
    if arguments.output:
        facts = {"photos": arguments.images, "cells": shape, "bytes": num_bytes, "shortlist": arguments.shortlist}
        document = {"machine": machine(), "packages": versions(), **facts, "first_search": first, "seconds": seconds}
        write_json(arguments.output, document)


def _blank(search: PhotoSearch) -> np.ndarray:
    return np.zeros((1, search.annotator.image_size, search.annotator.image_size, 3), np.uint8)


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="folder of a search run")
    parser.add_argument("--annotator", default="", help="the annotator's run; default: that of the search run")
    parser.add_argument("--images", type=positive, default=100_000, help="photos in the index")
    parser.add_argument("--shortlist", type=positive, default=1000, help="photos that the whole model scores")
    parser.add_argument("--scratch", help="folder for the index; the default is the system's temporary folder")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return parser


if __name__ == "__main__":
    run_command(_make_parser(), measure)
