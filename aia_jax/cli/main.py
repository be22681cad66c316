"""Runs the command line: `aia COMMAND`, `python -m aia_jax COMMAND`, and scripts such as `train.py`."""

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from aia_jax.cli.exit_codes import end_process, execute, fail
from aia_jax.cli.flags import Parser
from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import check_versions
from aia_jax.version import __version__

# Each command is a module of this package with `add_arguments(parser)` and `run(arguments)`.
COMMANDS = {
    "train": "train a model from a config, or continue a run, then evaluate it",
    "configs": "list the packaged configs",
    "evaluate": "score a split: metrics, predictions and pictures",
    "convert": "convert PyTorch weights to a checkpoint, or a checkpoint to PyTorch weights",
    "annotate": "label the photos of a folder",
    "export": "export an annotator as StableHLO or ONNX",
    "features": "compute grid features of photos, for image-text retrieval",
    "import-labels": "import labels of your own photos for training",
    "models": "list the shipped models, and the models in a folder",
    "package": "write a trained annotator as a model folder, with a model card",
    "keywords": "encode keywords of images for image search",
    "prepare": "download and check a public data set",
    "results": "list published results beside measured ones",
    "review": "correct the labels of photos in the browser, and retrain the model",
    "search": "search the photos of a folder by words",
    "vocab": "build a vocabulary from captions",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `aia`. `argv` is the command line without the name of the program.

    Returns:
        The exit code; see `exit_codes`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] in (["-V"], ["--version"]):
        return execute(Parser("", "aia"), lambda _: print(f"aia_jax {__version__}"), [])
    if len(argv) > 1 and argv[0] == "help":
        argv = [argv[1], "--help"]
    if argv and argv[0] in ("-h", "--help", "help"):
        return execute(Parser("", "aia"), lambda _: print(_help()), [])
    if not argv:
        return fail("name a command; see aia --help")
    name, *arguments = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"nearest: {near[0]}" if near else f"known: {', '.join(COMMANDS)}"
        return fail(f"unknown command {name!r}; {hint}")
    return run_command(name, arguments, f"aia {name}")


def run_program() -> NoReturn:
    """Runs `aia`, and exits."""
    end_process(main)


def run_script(name: str) -> NoReturn:
    """Runs the command `name` under the name of the running script, and exits."""
    end_process(lambda: run_command(name, sys.argv[1:], Path(sys.argv[0]).name))


def run_command(name: str, argv: Sequence[str], prog: str) -> int:
    """Runs a command and returns the exit code. Imports only the module of this command, to start fast."""
    try:
        check_versions()
    except InputError as error:
        return fail(str(error))
    command = importlib.import_module(f"aia_jax.cli.{name.replace('-', '_')}")
    parser = Parser(command.__doc__, prog)
    command.add_arguments(parser)
    return execute(parser, command.run, argv)


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    listed = "\n".join(f"  {name:<{width}}{text}" for name, text in COMMANDS.items())
    return (
        f"usage: aia COMMAND [flags]\n\nAutomatic image annotation in JAX.\n\ncommands:\n{listed}\n\n"
        "`aia COMMAND --help` shows examples and flags."
    )
