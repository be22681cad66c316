"""Times a search of `aia search` in a memory-mapped index of many photos, beside a copy of the memory that it reads.

    python -m benchmarks.search_folder --output FILE.json
    python -m benchmarks.search_folder --workdir runs/amc --output FILE.json

The index holds random noise in the shape of the model's arrays. It needs disk space: 90 MB for 100,000 photos with the
shipped model `open`, and 1.9 GB with a run of AMC with 36 cells of 256 channels.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from aia_jax.cli.flags import Parser, positive
from aia_jax.data.vocabulary import SPECIAL_WORDS
from aia_jax.inference.indexed_photos import load_search
from aia_jax.inference.searcher import Part, PhotoSearch
from aia_jax.inference.sentence_search import SentenceSearch
from aia_jax.utils.files import check_room, os_errors_as_input_errors, write_json
from aia_jax.utils.model_folders import OPEN
from benchmarks.comparison import run_command
from benchmarks.timing import machine, progress, time_interleaved, versions

_PART = 512
_COUNT = 10


def synthetic_parts(folder: Path, search: PhotoSearch | SentenceSearch, num_photos: int) -> list[Part]:
    """Writes and memory-maps the parts of an index: rows of a few noise images, in random order in each part."""
    rng, images = np.random.default_rng(0), _noise(search, search.batch_size)
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
    progress("loads the model")
    search = load_search(arguments.workdir or OPEN, arguments.annotator)
    amc = isinstance(search, PhotoSearch)
    query = next(word for word in search.vocabulary.ids if word not in SPECIAL_WORDS) if amc else "a dog in the snow"
    one = sum(values.nbytes for values in search.compute(_noise(search, 1)).values())
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        num_bytes = one * arguments.images
        with os_errors_as_input_errors(Path(folder), num_bytes, "--scratch selects another folder"):
            check_room(Path(folder), num_bytes)
            progress(f"writes the index, {num_bytes / 1e9:.2f} GB")
            parts = synthetic_parts(Path(folder), search, arguments.images)
        progress("searches")
        call = partial(search.search, query, parts, count=_COUNT, shortlist=arguments.shortlist)
        start = time.process_time()
        call()
        first = time.process_time() - start
        read = np.ones(num_bytes - (parts[0][0]["cells"][:1].nbytes * arguments.images if amc else 0), np.uint8)
        copied = read.copy()  # a copy to new memory would measure the system's allocation of pages
        copy = partial(np.copyto, copied, read)
        calls = {"copy of the memory that all photos are scored from": copy, "search": call}
        if amc:
            calls["shortlist alone"] = partial(search.rough_scores, search.encode(query), parts)
        seconds = time_interleaved(calls)
    print(f"{arguments.images:,} photos, {num_bytes / 1e9:.2f} GB")
    print(f"first search, with compilation: {first:.2f} s of CPU")
    for name, timed in seconds.items():
        print(f"{name:<52}{1e3 * timed['cpu_seconds']:8.1f} ms of CPU, {1e3 * timed['seconds']:8.1f} ms")
    if arguments.output:
        facts = {"photos": arguments.images, "bytes": num_bytes, "shortlist": arguments.shortlist if amc else None}
        document = {
            "machine": machine(),
            "packages": versions(),
            "model": (arguments.workdir or Path(OPEN)).name,
            **facts,
        }
        write_json(arguments.output, {**document, "first_search_cpu": first, "seconds": seconds})


def _noise(search: PhotoSearch | SentenceSearch, count: int) -> np.ndarray:
    shape = (count, search.image_size, search.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", type=Path, help="folder of a search run; default: the shipped model open")
    parser.add_argument("--annotator", default="", help="the annotator's run; default: that of the search run")
    parser.add_argument("--images", type=positive, default=100_000, help="photos in the index")
    parser.add_argument("--shortlist", type=positive, default=1000, help="photos that the whole model scores")
    parser.add_argument("--scratch", help="folder for the index; the default is the system's temporary folder")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return parser


if __name__ == "__main__":
    run_command(_make_parser(), measure)
