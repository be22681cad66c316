"""Labels with scores for every photo of a folder."""

import argparse
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

import aia_jax
from aia_jax.cli.devices import enable_compilation_cache
from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import positive
from aia_jax.cli.model_flags import add_model_arguments, check_model_arguments
from aia_jax.data.cache import os_errors_as_input_errors
from aia_jax.data.photo_folder import photo_names
from aia_jax.inference.annotation_output import PROBLEMS, AnnotationOutput
from aia_jax.inference.annotator import PhotoAnnotator
from aia_jax.inference.gallery_page import write_gallery
from aia_jax.training.preemption import stop_on_signals
from aia_jax.utils.errors import InputError, Interrupted
from aia_jax.utils.messages import format_count, printable

_BYTES_PER_PHOTO = 5000  # about: a block of the disk for the keywords, and a line
_BYTES_PER_PICTURE = 100_000  # about: of a camera's photo in base64, kept, in the page and while that is written
_PICTURE_SIDE = 448  # pixels; 5,000 natural photos of 448 x 448 make a page of 168 MB, which opens at once
_LISTED = 5  # photos that cannot be read
PAGE = "gallery.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `aia annotate`."""
    add_model_arguments(parser)
    parser.add_argument(
        "--images",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="photos, searched recursively; hidden files are left out",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="gets annotations.jsonl, annotations.csv, keywords/ and problems.jsonl; what a call was interrupted in is "
        "continued, photos that have labels there are not read again",
    )
    parser.add_argument("--top", type=positive, metavar="N", help="at most N labels a photo, the highest")
    parser.add_argument(
        "--html",
        action="store_true",
        help=f"write {PAGE} into --output too: all photos with their labels and where each label looks, to search and "
        "filter, in one file; it may also be asked for once the labels are there",
    )
    parser.add_argument("--batch_size", type=positive, default=32, metavar="N", help="photos computed at once")
    parser.add_argument(
        "--num_workers", type=int, default=0, metavar="N", help="processes that decode photos; 0: threads"
    )
    parser.add_argument("--force", action="store_true", help="drop annotations that are in --output and start anew")


def run(arguments: argparse.Namespace) -> None:
    """Annotates the photos that have no labels yet, derives table and keywords, and prints a summary.

    Raises:
        InputError: model, photos, thresholds or output that cannot be used, or none of the photos can be read.
        Interrupted: by Ctrl-C or SIGTERM; what was annotated stays.
    """
    _check(arguments)
    names = photo_names(arguments.images)
    enable_compilation_cache()
    annotator = aia_jax.load(
        arguments.workdir or arguments.weights,
        arguments.config,
        labels=arguments.labels,
        threshold=arguments.thresholds if arguments.threshold is None else arguments.threshold,
        top=arguments.top,
        batch_size=arguments.batch_size,
    )
    settings = {"images": str(arguments.images.resolve()), **annotator.settings}
    output: Path = arguments.output
    advice = f"--output names another place; once there is room {_continuing(arguments)} continues"
    bytes_per_photo = _BYTES_PER_PHOTO + _BYTES_PER_PICTURE * arguments.html
    with (
        exit_on_sigterm(),
        os_errors_as_input_errors(output, bytes_per_photo * len(names), advice),
        AnnotationOutput(output, settings, force=arguments.force, pictures=arguments.html) as written,
    ):
        fresh = [name for name in names if not written.has(name)]
        start = time.perf_counter()
        if fresh:
            _annotate(annotator, arguments, fresh, written, len(names) - len(fresh))
        seconds = time.perf_counter() - start
        _derive(written)
        if arguments.html:
            write_gallery(output / PAGE, arguments.images, annotator.labels, written)
        now = f", {len(fresh) / seconds:,.1f} img/s" if fresh else ""
        print(
            f"{len(fresh):,} of {format_count(len(names), 'photo')} read now{now}; written to {printable(str(output))}"
        )


def _annotate(
    annotator: PhotoAnnotator, arguments: argparse.Namespace, names: Sequence[str], written: AnnotationOutput, done: int
) -> None:
    remaining = iter(names)
    paths = [os.path.join(arguments.images, name) for name in names]
    bar = tqdm(desc="annotate", total=done + len(names), initial=done, unit="img", dynamic_ncols=True, mininterval=0.5)
    side = _PICTURE_SIDE if arguments.html else 0
    annotated = annotator.annotate(paths, arguments.num_workers, picture_side=side)
    with stop_on_signals() as request, bar, contextlib.closing(annotated) as batches:
        for batch in batches:
            found = list(zip(itertools.islice(remaining, len(batch)), batch, strict=True))
            read = [(name, photo) for name, photo in found if not isinstance(photo, str)]
            written.add(
                [(name, photo.labels) for name, photo in read if name not in written.done],
                [(name, problem) for name, problem in found if isinstance(problem, str)],
                [(name, photo.picture) for name, photo in read if photo.picture],
            )
            bar.update(len(batch))
            if request.signum:
                done = format_count(bar.n, "photo")
                raise Interrupted(request.signum, f"stopped after {done}; {_continuing(arguments)} continues")


def _derive(written: AnnotationOutput) -> None:
    """Writes what is derived, and tells about all photos."""
    num_photos = num_labels = num_empty = 0
    for _, labels in tqdm(written.derive(), desc="write", unit="img", leave=False, dynamic_ncols=True, mininterval=0.5):
        num_photos += 1
        num_labels += len(labels)
        num_empty += not labels
    problems = written.problems()
    listed = [f"{printable(name)}: {problem}" for name, problem in itertools.islice(problems, _LISTED)]
    more = sum(1 for _ in problems)
    told = "".join(f"\n  {line}" for line in listed) + (f"\n  and {more:,} more" if more else "")
    if not num_photos:
        raise InputError(f"none of the {len(listed) + more:,} photos can be read:{told}")
    if listed:
        print(f"{format_count(len(listed) + more, 'photo')} with problems, see {PROBLEMS}:{told}", file=sys.stderr)
    mean = num_labels / num_photos
    print(f"{format_count(num_photos, 'photo')} annotated, {mean:.2f} labels a photo, {num_empty:,} without any")


def _continuing(arguments: argparse.Namespace) -> str:
    return "the same command without --force" if arguments.force else "the same command"


def _check(arguments: argparse.Namespace) -> None:
    check_model_arguments(arguments)
    if arguments.num_workers < 0:
        raise InputError(f"--num_workers must be 0, for threads, or more, not {arguments.num_workers}")
