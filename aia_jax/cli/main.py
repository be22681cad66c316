"""`aia <command>`, which is also `python -m aia_jax <command>`."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from aia_jax.cli import annotate, export, features, import_labels, keywords, prepare, results, search, vocab
from aia_jax.cli.flags import EXIT_INPUT, fail, run_with_exit_code
from aia_jax.utils.config import read_config

_COMMANDS = {
    "annotate": annotate,
    "export": export,
    "features": features,
    "import-labels": import_labels,
    "keywords": keywords,
    "prepare": prepare,
    "results": results,
    "search": search,
    "vocab": vocab,
}


class _Parser(argparse.ArgumentParser):
    _given: Sequence[str] = ()

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        self._given = args or ()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):  # perhaps as one is misspelt
            known = [option for action in self._actions for option in action.option_strings]
            flags = (given.split("=")[0] for given in self._given if given.startswith("--"))
            for flag in flags:
                if flag not in known and not flag.startswith("--config."):
                    near = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
                    message += f"; unknown: {flag}" + (f", nearest: {near[0]}" if near else "")
        self.exit(EXIT_INPUT, f"error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; `argv` is the command line without the program's name.

    Returns:
        The exit code: 0 done, 2 bad flags or input, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    if argv and not argv[0].startswith("-") and argv[0] not in _COMMANDS:
        near = difflib.get_close_matches(argv[0], _COMMANDS, n=1, cutoff=0.5)
        hint = f"nearest: {near[0]}" if near else f"known: {', '.join(_COMMANDS)}"
        return fail(f"unknown command {argv[0]!r}; {hint}")
    arguments, others = parser.parse_known_args(argv)
    if others and not getattr(arguments, "config", None):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return run_with_exit_code(lambda: _run(arguments, others))


def _run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    try:
        if getattr(arguments, "config", None):
            arguments.config = read_config(arguments.config, overrides)
        _COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, `head` say, has had enough


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="aia", description="Automatic image annotation in JAX.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in _COMMANDS.items():
        described = command.__doc__.strip()
        command.add_arguments(commands.add_parser(name, help=described, description=described, allow_abbrev=False))
    return parser
