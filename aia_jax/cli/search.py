"""Search a folder of your own photos in words."""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from aia_jax.cli.devices import enable_compilation_cache
from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import not_negative, positive
from aia_jax.data.cache import cache_root, os_errors_as_input_errors
from aia_jax.data.image_decoding import thumbnail
from aia_jax.data.photo_folder import read_photos
from aia_jax.data.search.queries import unknown_words
from aia_jax.inference.search_index import PhotoIndex, Update
from aia_jax.inference.searcher import PhotoSearch, SearchResult
from aia_jax.report.search import SearchHit
from aia_jax.report.search_page import write_search_page
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import format_count, printable

_KEYWORDS_SHOWN = 4
_THUMBNAIL = 320
_LISTED = 5  # photos that cannot be used


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `aia search`."""
    parser.add_argument(
        "queries", nargs="*", metavar="QUERY", help='such as "red boat"; without any they are asked for'
    )
    parser.add_argument("--workdir", required=True, type=Path, help="folder of a search run (configs/amc.py)")
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="photos, searched recursively")
    parser.add_argument("--annotator", default="", metavar="DIR", help="its run; the default is the search run's own")
    parser.add_argument("--index", type=Path, metavar="DIR", help="where the index lies; the default is in the cache")
    parser.add_argument("--top", type=positive, default=10, metavar="N", help="photos to show; the default is 10")
    parser.add_argument(
        "--shortlist",
        type=not_negative,
        default=1000,
        metavar="N",
        help="photos that the whole model scores, chosen by it without visual attention; 0: all; the default is 1000",
    )
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write a page with the photos found (one query)")
    parser.add_argument("--batch_size", type=positive, default=32, metavar="N", help="photos computed at once")
    parser.add_argument("--num_workers", type=not_negative, default=0, metavar="N", help="processes that decode photos")


def run(arguments: argparse.Namespace) -> None:
    """Brings the index of the folder up to date, then prints what each query finds.

    Raises:
        InputError: run, photos, index or query that cannot be used.
    """
    if arguments.html and len(arguments.queries) != 1:
        raise InputError("--html shows one query; give exactly one")
    if arguments.html and (arguments.html.is_dir() or not arguments.html.absolute().parent.is_dir()):
        raise InputError(f"--html {arguments.html} names no file in a folder that is there")
    enable_compilation_cache()
    search = PhotoSearch(arguments.workdir, arguments.annotator, arguments.batch_size)
    for query in arguments.queries:
        search.encode(query)  # told before any photo is read
    path = arguments.index or _index_place(arguments.images, search.digest)
    index = PhotoIndex(path, arguments.images, search.digest)
    advice = "--index names another place"
    with exit_on_sigterm(), os_errors_as_input_errors(path, None, advice):
        size = search.annotator.image_size
        read = partial(read_photos, size=size, num_workers=arguments.num_workers, upright=True)
        update = index.update(read, search.compute, search.annotator.batch_size)
    _tell(update, index, path)
    names, parts = index.names, index.parts()
    for query in arguments.queries or _asked(search):
        start = time.perf_counter()
        if unknown := unknown_words(query, search.vocabulary):
            print(f"not known: {', '.join(unknown)}", file=sys.stderr)
        found = search.search(query, parts, count=arguments.top, shortlist=arguments.shortlist)
        _print(query, found, names, time.perf_counter() - start)
        if arguments.html:
            write_search_page(arguments.html, query, list(_hits(found, names, arguments.images)), title=query)
            print(f"written to {arguments.html}")


def _index_place(folder: Path, digest: str) -> Path:
    place = hashlib.sha256(f"{folder.resolve()} {digest}".encode(errors="surrogateescape")).hexdigest()[:12]
    return cache_root("") / "indexes" / f"{folder.resolve().name}-{place}"


def _tell(update: Update, index: PhotoIndex, path: Path) -> None:
    if update.rebuilt:
        print(f"the index in {path} was made anew: {update.rebuilt}", flush=True)
    changes = f"{update.new:,} new, {update.changed:,} changed, {update.gone:,} gone"
    print(f"{format_count(len(index.names), 'photo')} indexed: {changes}", flush=True)
    if update.problems:
        listed = [f"\n  {printable(name)}: {problem}" for name, problem in list(update.problems.items())[:_LISTED]]
        more = f"\n  and {len(update.problems) - _LISTED:,} more" if len(update.problems) > _LISTED else ""
        print(f"{len(update.problems):,} cannot be used and are left out:{''.join(listed)}{more}", file=sys.stderr)


def _asked(search: PhotoSearch) -> Iterator[str]:
    """Queries from a terminal or a pipe, one a line; one of unknown words is told and the next asked for."""
    terminal = sys.stdin.isatty()
    while True:
        try:
            query = input("query (empty: the end): " if terminal else "").strip()
        except EOFError:
            return
        if not query and terminal:
            return
        if not query:
            continue
        try:
            search.encode(query)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        yield query


def _print(query: str, found: SearchResult, names: Sequence[str], seconds: float) -> None:
    print(f"\n“{query}”  ({format_count(len(names), 'photo')} in {seconds:.2f} s)\n      score  map / keywords  file")
    for place, row in enumerate(found.rows):
        visual, keyword = found.weights[place]
        words = "  ".join(f"{word} {share:.2f}" for word, share in found.keywords[place][:_KEYWORDS_SHOWN])
        split = f"{visual:.2f} / {keyword:.2f}"
        print(
            f"{place + 1:4}  {found.scores[place]:5.3f}  {split:>14}  {printable(names[row])}  {words and f'[{words}]'}"
        )


def _hits(found: SearchResult, names: Sequence[str], folder: Path) -> Iterator[SearchHit]:
    for place, row in enumerate(found.rows):
        try:
            image = thumbnail((folder / names[row]).read_bytes(), _THUMBNAIL)
        except (OSError, InputError) as error:
            print(f"{printable(names[row])} is left out of the page: {error}", file=sys.stderr)
            continue
        yield SearchHit(
            image=image,
            name=names[row],
            score=float(found.scores[place]),
            correct=None,
            attention=found.attention[place],
            weights=tuple(map(float, found.weights[place])),
            keywords=found.keywords[place],
        )
