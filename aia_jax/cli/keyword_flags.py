"""The flags of `aia annotate` for keywords in XMP, and what they do."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from aia_jax.cli.flags import Parser, local
from aia_jax.data.photo_metadata.keywords import PARENT
from aia_jax.data.photo_metadata.photo_xmp import FORMS, photo_keywords
from aia_jax.utils.errors import InputError, Interrupted
from aia_jax.utils.files import os_errors_as_input_errors
from aia_jax.utils.messages import format_count, list_problems, printable

if TYPE_CHECKING:
    from aia_jax.data.photo_metadata.keywords import KeywordPath
    from aia_jax.data.photo_metadata.mapping import KeywordMapping
    from aia_jax.inference.keyword_output import Outcome


def add_keyword_arguments(parser: Parser) -> None:
    """Adds the flags for keywords in XMP."""
    group = parser.add_argument_group("keywords for photo programs (XMP)")
    xmp = "also write the labels as keywords into XMP sidecars. Other content, and your keywords, are kept"
    group.add_argument("--xmp", action="store_true", help=xmp)
    form = f"name of the sidecar of photo.jpg; default: {FORMS[0]}. Lightroom and Capture One read {FORMS[1]}"
    group.add_argument("--sidecar", choices=FORMS, help=form)
    embed = "write the keywords into the photos themselves: JPEG, TIFF, PNG and WebP. Pixels and other data are kept"
    group.add_argument("--embed", action="store_true", help=embed)
    group.add_argument("--keep_time", action="store_true", help="--embed keeps the modification times of the photos")
    parent = f"keyword above the automatic keywords, levels separated by |; default: {PARENT}; '' for none"
    group.add_argument("--parent", default=PARENT, metavar="KEYWORD", help=parent)
    mapping = "YAML file with the keyword of each label, and labels to ignore"
    group.add_argument("--mapping", type=local, metavar="FILE", help=mapping)
    first = "write a first mapping file to edit, with the labels of the model and the keywords of the photos, and stop"
    group.add_argument("--write_mapping", type=local, metavar="FILE", help=first)
    undo = "take back all keywords that --xmp and --embed wrote into the photos and sidecars of --images, and stop"
    group.add_argument("--undo", action="store_true", help=undo)


def read_keyword_flags(arguments: argparse.Namespace) -> tuple[KeywordMapping, KeywordPath]:
    """Returns the mapping and the levels of `--parent`. Raises InputError if flags cannot be used together."""
    from aia_jax.data.photo_metadata.mapping import KeywordMapping, read_mapping

    writes = arguments.xmp or arguments.embed
    for flag in ("sidecar", "keep_time", "mapping"):
        needed = {"sidecar": arguments.xmp, "keep_time": arguments.embed, "mapping": writes}[flag]
        if getattr(arguments, flag) and not needed:
            raise InputError(f"--{flag} goes with {'--embed' if flag == 'keep_time' else '--xmp'}")
    parent = tuple(level.strip() for level in arguments.parent.split("|")) if arguments.parent.strip() else ()
    if not all(parent) or not arguments.parent.isprintable():
        raise InputError(f"--parent {arguments.parent!r}: expected levels separated by |, such as auto or Tags|auto")
    return read_mapping(arguments.mapping) if arguments.mapping else KeywordMapping(), parent


def note_labels(arguments: argparse.Namespace, mapping: KeywordMapping, labels: Sequence[str]) -> None:
    """Prints labels of the mapping that the model does not have, and levels that contain a separator of a field."""
    for line in mapping.unknown(labels):
        print(f"{arguments.mapping}: the model has no label {line}", file=sys.stderr)
    levels = dict.fromkeys(level for label in labels for level in mapping.path(label) if {"|", "/"} & set(level))
    if levels and (arguments.xmp or arguments.embed):
        count = format_count(len(levels), "keyword")
        listed = list_problems(list(map(printable, levels)), 5)
        print(f"{count} with | or /; fields that separate levels by this sign get - instead:{listed}", file=sys.stderr)


def write_keywords(
    arguments: argparse.Namespace,
    mapping: KeywordMapping,
    parent: KeywordPath,
    photos: Iterable[tuple[str, Sequence[tuple[str, float]]]],
    total: int,
) -> None:
    """Writes the keywords of photos, pairs of a name and labels with scores, and prints a summary.

    Raises:
        InputError: no file can be written.
        Interrupted: Ctrl-C or SIGTERM stopped the command. Each photo and sidecar is complete.
    """
    from aia_jax.inference.keyword_output import KeywordWriter

    form = (arguments.sidecar or FORMS[0]) if arguments.xmp else ""
    writer = KeywordWriter(arguments.images, mapping, parent, form, arguments.embed, arguments.keep_time)
    outcomes = (writer.write(name, [label for label, _ in labels]) for name, labels in photos)
    _report("keywords", "written", arguments.images, outcomes, total)


def undo(folder: Path) -> None:
    """Takes back the automatic keywords in `folder`, and prints a summary. Raises as `write_keywords`."""
    from aia_jax.inference.keyword_output import undo

    if not folder.is_dir():
        raise InputError(f"--images {folder} {'is no folder' if folder.exists() else 'does not exist'}")
    _report("undo", "restored", folder, ([outcome] for outcome in undo(folder)), None)


def write_first_mapping(path: Path, labels: Sequence[str], folder: Path, names: Sequence[str]) -> None:
    """Writes a mapping file with the labels of a model, and prints a summary.

    A label with the name of a keyword in the photos gets this keyword. Raises InputError if the file exists.
    """
    from aia_jax.data.photo_metadata.mapping import write_mapping

    keywords, problems = {}, []
    for name in tqdm(names, desc="keywords", unit="img", leave=False, dynamic_ncols=True, mininterval=0.5):
        try:
            keywords |= dict.fromkeys(photo_keywords(folder / name)[0])
        except (InputError, OSError) as error:
            problems.append(f"{printable(name)}: {getattr(error, 'strerror', None) or error}")
    with os_errors_as_input_errors(path.parent, None, "name another file"):
        found = write_mapping(path, labels, keywords)
    if problems:
        count = format_count(len(problems), "photo")
        print(f"{count} whose keywords cannot be read:{list_problems(problems, 5)}", file=sys.stderr)
    of_photos = f"{found:,} with the keyword that your photos have"
    print(f"{printable(str(path))}: {format_count(len(labels), 'label')}, {of_photos}; edit it, then use --mapping")


def _report(desc: str, done: str, folder: Path, outcomes: Iterable[Iterable[Outcome]], total: int | None) -> None:
    from aia_jax.training.preemption import stop_on_signals

    changed, same, problems = 0, 0, []
    bar = tqdm(outcomes, desc=desc, total=total, unit="img", leave=False, dynamic_ncols=True, mininterval=0.5)
    advice = "after you free space, the same command continues"
    with (
        os_errors_as_input_errors(folder, None, advice),
        stop_on_signals() as request,
        bar,
        contextlib.closing(_flat(bar)) as files,
    ):
        for name, is_changed, problem in files:
            changed, same = changed + is_changed, same + (not is_changed and not problem)
            problems += [f"{printable(name)}: {problem}"] if problem else []
            if request.signum:
                count = format_count(changed, "file")
                raise Interrupted(request.signum, f"stopped with {count} {done}; the same command continues")
    if problems and not changed + same:
        raise InputError(f"no file can be {done}:{list_problems(problems, 5)}")
    if problems:
        print(f"{format_count(len(problems), 'file')} not {done}:{list_problems(problems)}", file=sys.stderr)
    unchanged = f", {same:,} need no change" if same else ""
    print(f"keywords: {format_count(changed, 'file')} {done}{unchanged}")


def _flat(outcomes: Iterable[Iterable[Outcome]]) -> Iterator[Outcome]:
    for some in outcomes:
        yield from some
