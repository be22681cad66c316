"""Search the photos of a folder by words or sentences.

    aia search --images photos "a dog in the snow" --html found.html
    aia search --workdir runs/amc --images photos "red boat"
    aia search --images photos --ray 10.0.0.1:6379 "a dog in the snow"

A dual encoder finds photos by sentences. AMC knows the words of its training queries, and shows why a photo was found.
Updates the index of the photos first: computes new and changed photos, and drops removed ones.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aia_jax.cli.devices import enable_compilation_cache
from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import Parser, add_photo_arguments, local, local_or_url, not_negative, positive, word
from aia_jax.cli.ray_flags import add_ray_arguments, check_ray_flags, rows_on_ray
from aia_jax.data.cache import cache_root
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_writable, os_errors_as_input_errors
from aia_jax.utils.messages import format_count, list_problems, printable
from aia_jax.utils.model_folders import OPEN

if TYPE_CHECKING:
    from aia_jax.data.photo_rows import PhotoRow
    from aia_jax.inference.search_index import Update
    from aia_jax.inference.searcher import PhotoSearch, SearchResult
    from aia_jax.inference.sentence_search import SentenceSearch

_KEYWORDS_SHOWN = 4
_THUMBNAIL = 320


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia search`."""
    queries = 'such as "red boat"; default: read queries from the terminal, one per line'
    parser.add_argument("queries", nargs="*", metavar="QUERY", help=queries)
    model = parser.add_argument_group("model").add_mutually_exclusive_group()
    named = f"model folder or shipped model of a dual encoder; default: {OPEN}"
    model.add_argument("--model", type=local_or_url, metavar="DIR|NAME|URL", help=named)
    model.add_argument("--workdir", type=local_or_url, metavar="DIR|URL", help="run of a dual encoder or of AMC")
    add_photo_arguments(parser)
    annotator = "AMC: annotator's run; default: as in training"
    parser.add_argument("--annotator", type=word, default="", metavar="DIR", help=annotator)
    parser.add_argument("--index", type=local, metavar="DIR", help="folder of the index; default: in the cache")
    parser.add_argument("--top", type=positive, default=10, metavar="N", help="photos to show; default: 10")
    shortlist = "AMC: number of photos, preselected without visual attention, to score with it; 0: all; default: 1000"
    parser.add_argument("--shortlist", type=not_negative, default=1000, metavar="N", help=shortlist)
    fast = "dual encoder: select photos by int8 vectors; for millions of photos. Needs the extra fast"
    parser.add_argument("--fast", action="store_true", help=fast)
    parser.add_argument("--html", type=local, metavar="FILE.html", help="write a page of the photos found (one query)")
    add_ray_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Updates the index of the folder, then prints the photos that each query finds.

    Raises InputError if a file or folder that a flag names cannot be used, or no word of a query is known.
    """
    from aia_jax.data.photo_folder import photo_names
    from aia_jax.data.photo_sources import PhotoPlace, PhotoSource
    from aia_jax.inference.indexed_photos import IndexedPhotos

    if arguments.html and len(arguments.queries) != 1:
        raise InputError("--html shows one query; give exactly one")
    if arguments.html and (arguments.html.is_dir() or not arguments.html.absolute().parent.is_dir()):
        raise InputError(f"--html {arguments.html} names no file in an existing folder")
    check_writable(arguments.index or cache_root(""), "--index")
    check_ray_flags(arguments, ("num_workers",))
    names = photo_names(arguments.images)
    folder = str(arguments.images.resolve())
    load = partial(
        _load, arguments.model or arguments.workdir or OPEN, arguments.annotator, batch_size=arguments.batch_size
    )
    with contextlib.ExitStack() as stack:
        on_ray = arguments.ray is not None
        compute = stack.enter_context(rows_on_ray(arguments, PhotoSource([], folder))) if on_ray else None
        search = load()
        for query in arguments.queries:
            search.check(query)  # raises the error for unknown words before the photos are read
        photos = IndexedPhotos(arguments.images, search, arguments.index, fast=arguments.fast)
        stack.enter_context(exit_on_sigterm())
        stack.enter_context(os_errors_as_input_errors(photos.path, None, "--index names another place"))

        def rows(names: Sequence[str]) -> Iterator[list[PhotoRow]]:
            return compute([PhotoPlace(name, os.path.join(folder, name)) for name in names], load, search)

        update = photos.update(names, arguments.num_workers, rows if compute else None)
    names = photos.names
    _print_update(update, len(names), photos.path)
    for query in arguments.queries or _read_queries(search):
        start = time.perf_counter()
        if note := search.check(query):
            print(note, file=sys.stderr)
        found = photos.find(query, arguments.top, arguments.shortlist)
        _print_hits(query, found, names, time.perf_counter() - start)
        if arguments.html:
            from aia_jax.data.image_decoding import thumbnail
            from aia_jax.report.search_page import SearchHit, write_search_page

            files = [names[row] for row in found.rows]
            images = [thumbnail((arguments.images / file).read_bytes(), _THUMBNAIL) for file in files]
            nothing = itertools.repeat(None)
            reasons = (found.attention, found.weights, found.keywords) if found.keywords else (nothing,) * 3
            hits = list(map(SearchHit, images, files, found.scores, nothing, *reasons))
            write_search_page(arguments.html, [(query, hits)], title=query, folder=arguments.images)
            print(f"written to {arguments.html}")


def _load(model: str | Path, annotator: str, batch_size: int) -> PhotoSearch | SentenceSearch:
    """Loads the model, in this process or in an actor of Ray."""
    from aia_jax.inference.indexed_photos import load_search

    enable_compilation_cache()
    return load_search(model, annotator, batch_size)


def _print_update(update: Update, num_photos: int, path: Path) -> None:
    if update.rebuilt:
        print(f"the index in {path} was rebuilt: {update.rebuilt}", flush=True)
    changes = f"{update.new:,} new, {update.changed:,} changed, {update.gone:,} gone"
    print(f"{format_count(num_photos, 'photo')} indexed: {changes}", flush=True)
    if update.problems:
        problems = [f"{printable(name)}: {problem}" for name, problem in update.problems.items()]
        print(f"{len(problems):,} cannot be used and are left out:{list_problems(problems, 5)}", file=sys.stderr)


def _read_queries(search: PhotoSearch | SentenceSearch) -> Iterator[str]:
    """Yields queries from a terminal or a pipe, one per line. Reports queries without a known word."""
    if sys.stdin.isatty():
        print("queries, one per line; Ctrl-D ends", flush=True)
    for query in filter(None, map(str.strip, sys.stdin)):
        try:
            search.check(query)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
        else:
            yield query


def _print_hits(query: str, found: SearchResult, names: Sequence[str], seconds: float) -> None:
    title = f"\n“{query}”  ({format_count(len(names), 'photo')} in {seconds:.2f} s)"
    print(f"{title}\n      score  {'map / keywords  ' * bool(found.keywords)}file")
    for place, row in enumerate(found.rows):
        if not found.keywords:
            print(f"{place + 1:4}  {found.scores[place]:5.3f}  {printable(names[row])}")
            continue
        visual, keyword = found.weights[place]
        words = "  ".join(f"{word} {weight:.2f}" for word, weight in found.keywords[place][:_KEYWORDS_SHOWN])
        split, name = f"{visual:.2f} / {keyword:.2f}", printable(names[row])
        print(f"{place + 1:4}  {found.scores[place]:5.3f}  {split:>14}  {name}  {words and f'[{words}]'}")
