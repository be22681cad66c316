"""The flags of `aia review` that exchange answers with other programs, and what they do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aia_jax.cli.flags import Parser, local
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_writable, os_errors_as_input_errors
from aia_jax.utils.messages import printable
from aia_jax.utils.model_folders import LABELS, model_folder

if TYPE_CHECKING:
    from aia_jax.inference.review.corrections import Corrections

_SUFFIXES = {"label-studio": ".json", "coco": ".json", "csv": ".csv"}  # of the formats in `exchange.FORMATS`


def add_answer_arguments(parser: Parser) -> None:
    """Adds the flags that write and read answers. With one of them, `aia review` opens no page."""
    group = parser.add_argument_group("exchange of answers with other programs; these flags open no page")
    one = group.add_mutually_exclusive_group()
    formats = f"write all answers to --output: {', '.join(_SUFFIXES)}"
    one.add_argument("--export", choices=_SUFFIXES, metavar="FORMAT", help=formats)
    imported = "store the answers in Label Studio's export, COCO's or LVIS's JSON, or a table image,label,answer"
    one.add_argument("--import", dest="imported", type=local, metavar="FILE", help=imported)
    group.add_argument("--output", type=local, metavar="FILE", help="file for --export")


def exchange_answers(arguments: argparse.Namespace) -> bool:
    """Exports or imports answers, and prints what it did. Returns False if no flag asks for it.

    Raises:
        InputError: a flag cannot be used, or there is no answer that can be written or stored.
    """
    if not arguments.export and not arguments.imported:
        if arguments.output:
            raise InputError("--output is for --export; add --export FORMAT")
        return False
    from aia_jax.inference.review.corrections import CORRECTIONS, Corrections
    from aia_jax.inference.review.exchange import import_answers
    from aia_jax.inference.review.session import FOLDER

    folder = arguments.workdir / FOLDER
    if arguments.export:
        _check_output(arguments)
        if not (folder / CORRECTIONS).exists():
            raise InputError(f"{arguments.workdir} has no answers; aia review without --export asks for them")
    labels = _vocabulary(arguments.workdir)
    with Corrections(folder, arguments.images) as corrections:
        if arguments.imported:
            lines = import_answers(corrections, arguments.images, labels, arguments.imported)
        else:
            lines = _export(corrections, arguments, labels)
    print("\n".join(lines))
    return True


def _vocabulary(workdir: Path) -> tuple[str, ...]:
    """Returns the labels of a run or a model folder, without its weights."""
    from aia_jax.data.annotation.annotations import read_labels
    from aia_jax.training.runs import open_run

    if folder := model_folder(workdir):
        return read_labels(folder / LABELS)

    with open_run(workdir) as checkpointer:
        labels = checkpointer.best()[1].get("labels")
    if not labels:
        raise InputError(f"{workdir} holds no annotator with labels; name the run of one")
    return tuple(labels)


def _export(corrections: Corrections, arguments: argparse.Namespace, labels: tuple[str, ...]) -> list[str]:
    from aia_jax.inference.review.exchange import export_answers

    with os_errors_as_input_errors(arguments.output.parent, None, "--output names another place"):
        return export_answers(corrections, arguments.images, labels, arguments.export, arguments.output)


def _check_output(arguments: argparse.Namespace) -> None:
    suffix, output = _SUFFIXES[arguments.export], arguments.output
    if not output:
        raise InputError(f"--export needs --output, such as --output answers{suffix}")
    if output.suffix.lower() != suffix:
        raise InputError(f"--export {arguments.export} writes a {suffix} file; --output {output} has another suffix")
    if output.exists():
        raise InputError(f"--output {printable(str(output))} exists; name another file, or delete it")
    check_writable(output.parent)
