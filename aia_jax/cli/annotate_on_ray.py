"""What `aia annotate --ray` does: labels the photos of a source on a Ray cluster, and writes Parquet files."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import aia_jax
from aia_jax.cli.devices import enable_compilation_cache
from aia_jax.cli.flags import model_source
from aia_jax.cli.ray_flags import rows_on_ray
from aia_jax.utils.errors import InputError, Interrupted
from aia_jax.utils.files import check_writable, os_errors_as_input_errors
from aia_jax.utils.messages import format_count, list_problems, printable
from aia_jax.utils.storage import is_url

if TYPE_CHECKING:
    from aia_jax.data.photo_sources import PhotoPlace
    from aia_jax.inference.annotator import PhotoAnnotator
    from aia_jax.inference.parquet_output import ParquetOutput

REFUSED = ("html", "queries", "export", "xmp", "embed", "write_mapping", "undo", "mapping", "sidecar", "num_workers")
_LISTED = 5


def annotate_on_ray(arguments: argparse.Namespace) -> None:
    """Annotates the photos of the source that have no labels yet, and prints a summary.

    Raises:
        InputError: see `find_photos`, `ParquetOutput`, `ray_cluster` and `ray_rows`; or no photo can be read.
        Interrupted: Ctrl-C or SIGTERM stopped the command. The labels so far are kept.
    """
    from aia_jax.data.photo_sources import find_photos
    from aia_jax.inference.parquet_output import ParquetOutput

    model_source(arguments)  # raises the errors of the flags
    # Not the path that it returns: on other machines, shipped models and copies of buckets have other paths.
    source = arguments.weights or arguments.model or arguments.workdir or arguments.default_model
    output = arguments.output
    if os.path.abspath(output) == os.path.abspath(arguments.images):
        raise InputError("--images and --output name one folder; name another --output")
    if not is_url(output):
        check_writable(output)
    photos = find_photos(arguments.images)
    load = partial(_load, source, arguments.config, arguments.labels, arguments.threshold, arguments.top)
    load = partial(load, arguments.batch_size)
    advice = "--output names another place; after you free space, the same command continues"
    errors = contextlib.nullcontext() if is_url(output) else os_errors_as_input_errors(output, None, advice)
    with rows_on_ray(arguments, photos) as rows, errors:
        annotator = load()
        settings = {"images": str(arguments.images if is_url(arguments.images) else photos.root), **annotator.settings}
        with ParquetOutput(output, settings, force=arguments.force) as written:
            remaining = [place for place in photos.places if not written.has(place.name)]
            start = time.perf_counter()
            batches = rows(remaining, load, annotator)
            problems = _write(batches, written, len(photos.places), len(remaining)) if remaining else {}
        seconds = time.perf_counter() - start
    _print_summary(written, problems, photos.places, len(remaining), seconds, output)


def _load(*given: Any) -> PhotoAnnotator:
    """Loads the annotator, in this process or in an actor. `given` are values of flags."""
    source, config, labels, threshold, top, batch_size = given
    enable_compilation_cache()
    return aia_jax.load(source, config, labels=labels, threshold=threshold, top=top, batch_size=batch_size)


def _write(batches: Any, written: ParquetOutput, total: int, remaining: int) -> dict[str, str]:
    """Writes the rows of batches. Returns `{name: problem}` of the photos that cannot be read."""
    from aia_jax.training.preemption import stop_on_signals

    problems: dict[str, str] = {}
    done = total - remaining
    bar = tqdm(desc="annotate", total=total, initial=done, unit="img", dynamic_ncols=True, mininterval=0.5)
    with stop_on_signals() as request, bar, contextlib.closing(batches):
        for batch in batches:
            written.add([(row.name, row.arrays["labels"] if row.arrays else (), row.problem) for row in batch])
            problems |= {row.name: row.problem for row in batch if row.problem}
            bar.update(len(batch))
            if request.signum:
                count = format_count(bar.n, "photo")
                raise Interrupted(request.signum, f"stopped after {count}; the same command without --force continues")
    return problems


def _print_summary(
    written: ParquetOutput,
    problems: dict[str, str],
    places: Sequence[PhotoPlace],
    num_read: int,
    seconds: float,
    output: Path | str,
) -> None:
    listed = list_problems([f"{printable(name)}: {problem}" for name, problem in problems.items()], _LISTED)
    if not written.done:
        raise InputError(f"none of the {len(problems):,} photos can be read:{listed}")
    if problems:
        print(f"{format_count(len(problems), 'photo')} with problems, see problems-*.parquet:{listed}", file=sys.stderr)
    rate = f", {num_read / seconds:,.1f} img/s" if num_read else ""
    count = format_count(len(places), "photo")
    print(f"{num_read:,} of {count} read now{rate}; written to {printable(str(output))}")
    from aia_jax.inference.parquet_output import as_utf8

    gone = len(written.done.difference(map(as_utf8, (place.name for place in places))))
    if gone:
        print(f"{format_count(gone, 'annotated photo')} no longer in the source; their labels are kept")
