"""Label the photos of a folder, with scores.

    aia annotate --images photos --html
    aia annotate --images photos --html --queries queries.txt
    aia annotate --images photos --labels words.txt --output words
    aia annotate --images photos --export label-studio coco
    aia annotate --workdir runs/demo --images photos --output annotated --html
    aia annotate --model corel5k --images photos --output annotated
    aia annotate --weights Annotator.pth --config corel5k --images photos --output annotated
    aia annotate --images photos --xmp
    aia annotate --images photos --undo
    aia annotate --images s3://bucket/photos --output s3://bucket/labels --ray --ray_actors 8

Without a model, the shipped model `open` labels the photos, with everyday words or with the words of --labels. The
output folder gets annotations.jsonl, annotations.csv, keywords/ and problems.jsonl. The same command continues an
interrupted call: photos that have labels there are not read again. With --xmp, photo programs show the labels. With
--ray, the photos can also be in a .txt list, .parquet or .tar files, and the labels are written as Parquet files.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

import aia_jax
from aia_jax.cli.annotate_on_ray import REFUSED, annotate_on_ray
from aia_jax.cli.devices import enable_compilation_cache
from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import (
    Parser,
    add_model_arguments,
    add_photo_arguments,
    local,
    local_or_url,
    model_source,
    positive,
)
from aia_jax.cli.keyword_flags import (
    add_keyword_arguments,
    note_labels,
    read_keyword_flags,
    undo,
    write_first_mapping,
    write_keywords,
)
from aia_jax.cli.outputs import check_output_folder
from aia_jax.cli.ray_flags import add_ray_arguments, check_ray_flags
from aia_jax.utils.errors import InputError, Interrupted
from aia_jax.utils.files import os_errors_as_input_errors, read_text
from aia_jax.utils.messages import format_count, list_problems, printable
from aia_jax.utils.model_folders import OPEN

if TYPE_CHECKING:
    from aia_jax.inference.annotation_output import AnnotationOutput
    from aia_jax.inference.annotator import PhotoAnnotator
    from aia_jax.inference.sentence_search import SentenceSearch

_BYTES_PER_PHOTO = 5000  # estimate: a disk block for the keywords file, and a line
_BYTES_PER_PICTURE = 100_000  # estimate: a base64 thumbnail in the store, in the page and in the copy of the page
_PICTURE_SIDE = 448  # pixels; a page of 5,000 natural photos of 448 x 448 has 168 MB and opens immediately
PAGE = "gallery.html"
_FORMATS = ("label-studio", "coco")


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia annotate`."""
    add_model_arguments(parser, default=OPEN)
    add_photo_arguments(parser, sources=True)
    output = "folder for the labels; with --ray also a URL; default: annotated"
    parser.add_argument("--output", type=local_or_url, default=Path("annotated"), metavar="DIR|URL", help=output)
    parser.add_argument("--top", type=positive, metavar="N", help="at most N labels per photo, the best ones")
    page = f"also write {PAGE}, a searchable page of all photos, their labels and attention; a later call can add it"
    parser.add_argument("--html", action="store_true", help=page)
    queries = "sentences, one per line, that the page finds; needs --html and a dual encoder, such as open. Reads new "
    queries += "photos twice: once for the labels, and once for the index, which `aia search` also uses"
    parser.add_argument("--queries", type=local, metavar="FILE", help=queries)
    formats = "also write label_studio.json or coco.json, for other programs; a later call can add them"
    parser.add_argument("--export", nargs="+", choices=_FORMATS, default=(), metavar="FORMAT", help=formats)
    parser.add_argument("--force", action="store_true", help="delete the annotations in --output and start again")
    add_keyword_arguments(parser)
    add_ray_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Annotates the photos that have no labels yet, writes the output files, and prints a summary.

    Raises:
        InputError: a file or folder that a flag names cannot be used, or no photo can be read.
        Interrupted: Ctrl-C or SIGTERM stopped the command. The annotations so far are kept.
    """
    from aia_jax.data.photo_folder import photo_names
    from aia_jax.inference.annotation_output import AnnotationOutput, write_gallery

    check_ray_flags(arguments, REFUSED)
    if arguments.ray is not None:
        return annotate_on_ray(arguments)
    if arguments.undo:
        return undo(arguments.images)
    mapping, parent = read_keyword_flags(arguments)
    if arguments.queries and not arguments.html:
        raise InputError("--queries is for the page of --html; add --html")
    source = model_source(arguments)
    check_output_folder(arguments.output)
    names = photo_names(arguments.images)
    enable_compilation_cache()
    annotator = aia_jax.load(
        source,
        arguments.config,
        labels=arguments.labels,
        threshold=arguments.threshold,
        top=arguments.top,
        batch_size=arguments.batch_size,
    )
    if arguments.write_mapping:
        return write_first_mapping(arguments.write_mapping, annotator.labels, arguments.images, names)
    note_labels(arguments, mapping, annotator.labels)
    search = annotator.sentence_search() if arguments.queries else None
    queries = _read_queries(arguments.queries, search) if search else []
    settings = {"images": str(arguments.images.resolve()), **annotator.settings}
    output: Path = arguments.output
    advice = f"--output names another place; after you free space, {_same_command(arguments)} continues"
    bytes_per_photo = _BYTES_PER_PHOTO + _BYTES_PER_PICTURE * arguments.html
    with (
        exit_on_sigterm(),
        os_errors_as_input_errors(output, bytes_per_photo * len(names), advice),
        AnnotationOutput(output, settings, force=arguments.force, pictures=arguments.html) as written,
    ):
        remaining = [name for name in names if not written.has(name)]
        start = time.perf_counter()
        if remaining:
            _annotate(annotator, arguments, remaining, written, len(names) - len(remaining))
        rate = f", {len(remaining) / (time.perf_counter() - start):,.1f} img/s" if remaining else ""
        _derive(written, lambda: _export(written, arguments, names, annotator.labels, source))
        gone = written.done.difference(names)
        if arguments.html:
            scored = _score_queries(arguments, search, queries, names) if search else ()
            write_gallery(output / PAGE, arguments.images, annotator.labels, written, scored)
        if arguments.xmp or arguments.embed:
            photos = ((name, labels) for name, labels in written.read() if name not in gone)
            write_keywords(arguments, mapping, parent, photos, len(written.done) - len(gone))
        if gone:
            _print_gone(sorted(gone), arguments.images)
        photos = format_count(len(names), "photo")
        print(f"{len(remaining):,} of {photos} read now{rate}; written to {printable(str(output))}")


def _print_gone(gone: Sequence[str], images: Path) -> None:
    listed = list_problems(list(map(printable, gone)), 5)
    count = format_count(len(gone), "annotated photo")
    print(f"{count} no longer in {printable(str(images))}; their labels are kept, --force starts again:{listed}")


def _read_queries(path: Path, search: SentenceSearch) -> list[str]:
    """Reads the different queries of a file, one per line. Lines that begin with "#" are comments.

    Raises InputError for queries that the model cannot use.
    """
    lines = [" ".join(line.split()) for line in read_text(path).splitlines()]
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("#"):
            numbers.setdefault(line.casefold(), number)
    if not numbers:
        raise InputError(f"{path} has no query; expected one sentence per line")
    problems = []
    for number in numbers.values():
        try:
            if note := search.check(lines[number - 1]):
                print(f"{path}:{number}: {note}", file=sys.stderr)
        except InputError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise InputError(f"{path}:{list_problems(problems, 5)}")
    return [lines[number - 1] for number in numbers.values()]


def _score_queries(
    arguments: argparse.Namespace, search: SentenceSearch, queries: Sequence[str], names: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields each query and the scores of the photos, after it has updated the index that `aia search` uses."""
    from aia_jax.inference.indexed_photos import IndexedPhotos

    photos = IndexedPhotos(arguments.images, search)
    with os_errors_as_input_errors(photos.path, None, "AIA_JAX_CACHE names another place"):
        photos.update(names, arguments.num_workers)
    for query in queries:
        yield query, photos.scores(query)


def _annotate(
    annotator: PhotoAnnotator, arguments: argparse.Namespace, names: Sequence[str], written: AnnotationOutput, done: int
) -> None:
    from aia_jax.training.preemption import stop_on_signals

    remaining = iter(names)
    paths = [arguments.images / name for name in names]
    bar = tqdm(desc="annotate", total=done + len(names), initial=done, unit="img", dynamic_ncols=True, mininterval=0.5)
    side = _PICTURE_SIDE if arguments.html else 0
    annotated = annotator.annotate(paths, arguments.num_workers, picture_side=side)
    with stop_on_signals() as request, bar, contextlib.closing(annotated) as batches:
        for batch in batches:
            found = [(name, photo) for photo, name in zip(batch, remaining, strict=False)]
            read = [(name, photo) for name, photo in found if not isinstance(photo, str)]
            written.add(
                [(name, photo.labels) for name, photo in read if name not in written.done],
                [(name, problem) for name, problem in found if isinstance(problem, str)],
                [(name, photo.picture) for name, photo in read if photo.picture],
            )
            bar.update(len(batch))
            if request.signum:
                done = format_count(bar.n, "photo")
                raise Interrupted(request.signum, f"stopped after {done}; {_same_command(arguments)} continues")


def _export(
    written: AnnotationOutput,
    arguments: argparse.Namespace,
    names: Sequence[str],
    labels: Sequence[str],
    source: str | Path,
) -> None:
    """Writes the files of `--export`."""
    from aia_jax.data.exporting import server_settings

    written.export(arguments.export, arguments.images, set(names), labels, Path(source).resolve().name)
    if "label-studio" in arguments.export:
        print(server_settings(arguments.images))


def _derive(written: AnnotationOutput, export: Callable[[], None]) -> None:
    """Writes annotations.csv and the keyword files, exports, and prints a summary and the problems of all photos."""
    from aia_jax.inference.annotation_output import PROBLEMS

    photos = tqdm(written.derive(), desc="write", unit="img", leave=False, dynamic_ncols=True, mininterval=0.5)
    counts = [len(labels) for _, labels in photos]
    if counts:
        export()
    problems = [f"{printable(name)}: {problem}" for name, problem in written.problems()]
    if not counts:
        raise InputError(f"none of the {len(problems):,} photos can be read:{list_problems(problems, 5)}")
    if problems:
        number = format_count(len(problems), "photo")
        print(f"{number} with problems, see {PROBLEMS}:{list_problems(problems, 5)}", file=sys.stderr)
    mean, num_empty = sum(counts) / len(counts), counts.count(0)
    print(f"{format_count(len(counts), 'photo')} annotated, {mean:.2f} labels a photo, {num_empty:,} without any")


def _same_command(arguments: argparse.Namespace) -> str:
    return "the same command without --force" if arguments.force else "the same command"
