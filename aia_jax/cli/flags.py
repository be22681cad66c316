"""The argument parser of all commands, and flags that several commands have."""

import argparse
import difflib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from aia_jax.utils.errors import InputError
from aia_jax.utils.model_folders import find_model
from aia_jax.utils.paths import local_path
from aia_jax.utils.storage import is_url

_LIKE_A_FLAG = re.compile(r"-[^-\d\s]\S*")  # argparse takes "-1" and texts with spaces for values


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError for every mistake and names the nearest known flag.

    Args:
        description: text that `--help` shows unchanged, with examples.
        prog: name of the program; None: the name of the running script.
    """

    def __init__(self, description: str | None, prog: str | None = None):
        super().__init__(
            prog=prog,
            description=inspect.cleandoc(description or ""),  # None with python -OO
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._required = self.add_argument_group("required flags")
        self._optional = self.add_argument_group("flags")
        self.add_argument("-h", "--help", action="help", help="show this text and exit")

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Adds a positional argument or a flag. Required flags and other flags are in separate groups."""
        if not names[0].startswith("-"):
            return super().add_argument(*names, **options)
        return (self._required if options.get("required") else self._optional).add_argument(*names, **options)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses a command line.

        Returns:
            The parsed arguments. `overrides` is a list of the arguments `--config.field=value`.

        Raises:
            InputError: a flag is unknown or missing, or a value does not fit the flag.
        """
        argv = [self._with_underscores(argument) for argument in argv]
        plain, overrides = _split_overrides(argv) if "--config" in self._option_string_actions else (list(argv), [])
        if not {"-h", "--help"} & set(plain) and (problem := self._unknown_flags(plain)):
            self.error(problem)
        arguments, others = self.parse_known_args(plain)
        if others:
            rule = "write it beside the others" if self._get_positional_actions() else "every argument is a flag"
            self.error(f"unexpected argument {others[0]!r}; {rule}")
        if overrides and not arguments.config:
            self.error(f"{overrides[0]} needs --config, the config whose field it sets")
        arguments.overrides = overrides
        return arguments

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exits after `--help`. First raises BrokenPipeError if the reader of the output has stopped."""
        sys.stdout.flush()
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        """Raises InputError with the message."""
        if message.endswith("expected one argument"):
            message += "; write a value that begins with - after an equals sign, as in --flag=-value"
        raise InputError(f"{message}; see {self.prog} --help")

    def _with_underscores(self, argument: str) -> str:
        """Returns --num_workers for --num-workers, if it is a flag."""
        name, equals, value = argument.partition("=")
        flag = "--" + name[2:].replace("-", "_")
        return flag + equals + value if name.startswith("--") and flag in self._option_string_actions else argument

    def _unknown_flags(self, argv: Sequence[str]) -> str:
        known, positional = self._option_string_actions, bool(self._get_positional_actions())
        given = [*itertools.takewhile(lambda argument: argument != "--", argv)]
        problems = []
        for before, argument in itertools.pairwise(["", *given]):
            flag = argument.split("=")[0]
            if flag.startswith("--") and flag not in known:
                near = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
                problems.append(f"unknown flag {flag}" + (f", nearest: {near[0]}" if near else ""))
            elif positional and _LIKE_A_FLAG.fullmatch(argument) and before not in known:
                problems.append(f"{argument!r} begins with -, as flags do; write it last, after --: -- {argument!r}")
        return "; ".join(problems)


def add_config_argument(parser: Parser, help: str = "packaged config, such as demo, or config file") -> None:
    """Adds `--config FILE`. `--config.field=value` sets a field of this config."""
    parser.add_argument("--config", required=True, metavar="FILE", help=f"{help}; --config.field=value sets a field")


def at_least(least: int | float) -> Callable[[str], Any]:
    """Returns a function that parses a number of the same type as `least` and rejects numbers below `least`."""

    def number(text: str) -> int | float:
        try:
            value = type(least)(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"must be {'a whole' if type(least) is int else 'a'} number, not {text!r}"
            ) from None
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return value

    return number


positive, not_negative = at_least(1), at_least(0)


def local(text: str) -> Path:
    """Parses the value of a flag that is the path of a local file or folder; see `local_path`."""
    try:
        return local_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def local_or_url(text: str) -> Path | str:
    """Parses the value of a flag that is a local path, or a URL of object storage, which stays a string."""
    return _url(text) if is_url(text) else local(text)


def word(text: str) -> str:
    """Parses the value of a flag that is a path or a word, such as the name of a package. "" is allowed."""
    return text and str(local(text))


def word_or_url(text: str) -> str:
    """Parses the value of a flag that is a path, a word or a URL of object storage. "" is allowed."""
    return _url(text) if is_url(text) else word(text)


def _url(text: str) -> str:
    if not text.partition("://")[2].strip("/"):  # without its slashes, it would be no URL
        raise argparse.ArgumentTypeError(f"{text!r} names no bucket; give {text.partition(':')[0]}://BUCKET/FOLDER")
    return text.rstrip("/")


def add_model_arguments(parser: Parser, *, default: str = "") -> None:
    """Adds the flags for an annotator and its thresholds. `default` is the shipped model that is used without flags."""
    group = parser.add_argument_group("model")
    model = group.add_mutually_exclusive_group(required=not default)
    named = "model folder, or a shipped model, such as corel5k; `aia models` lists them"
    named += default and f"; default: {default}"
    parser.set_defaults(default_model=default)
    model.add_argument("--model", type=local_or_url, metavar="DIR|NAME|URL", help=named)
    run = "annotation run, of which the best epoch is used"
    model.add_argument("--workdir", type=local_or_url, metavar="DIR|URL", help=run)
    model.add_argument("--weights", type=word, metavar="FILE", help="PyTorch or safetensors file; needs --config")
    group.add_argument("--config", metavar="FILE", help="config of --weights; --config.field=value sets a field")
    labels = "labels, one per line or JSON with `labels`: those of --weights, by default of the config's data, or any "
    labels += "words for the model open or a model with text queries, as `name` or `name: definition`"
    group.add_argument("--labels", type=local, metavar="FILE", help=labels)
    limits = group.add_mutually_exclusive_group()
    limits.add_argument("--threshold", type=float, metavar="T", help="a label is chosen if its score is above T")
    thresholds = "a threshold for each label; default: thresholds.json of the model, else config.eval.threshold"
    limits.add_argument("--thresholds", dest="threshold", type=local, metavar="FILE.json", help=thresholds)


def model_source(arguments: argparse.Namespace) -> str | Path:
    """Returns what the flags of `add_model_arguments` name: a folder, or the value of `--weights`.

    Raises InputError if flags contradict each other, or if there is no such folder or shipped model.
    """
    if arguments.config and not arguments.weights:
        raise InputError("--config belongs to --weights; a workdir or a model has its own")
    if arguments.weights and not arguments.config:
        raise InputError("--weights needs --config, which says what model the file holds")
    return arguments.weights or find_model(arguments.model or arguments.workdir or arguments.default_model)


def add_photo_arguments(parser: Parser, *, sources: bool = False) -> None:
    """Adds the flags for the photos, the batch size and the number of decoding threads.

    `sources` allows the other sources of `find_photos`, for `--ray`.
    """
    images = "photos, in subfolders too; hidden files are ignored"
    images += "; with --ray also a .txt list, a .parquet or .tar file, or a URL, gs:// or s3://" * sources
    kind, name = (local_or_url, "SOURCE") if sources else (local, "FOLDER")
    parser.add_argument("--images", required=True, type=kind, metavar=name, help=images)
    parser.add_argument("--batch_size", type=positive, default=32, metavar="N", help="photos per batch; default: 32")
    workers = "threads that decode photos; default: one for each core"
    parser.add_argument("--num_workers", type=not_negative, default=0, metavar="N", help=workers)


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.field=value` from other arguments; `--config.field value` becomes `--config.field=value`."""
    plain, overrides, rest = [], [], list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith(("--config.", "--noconfig.")):
            plain.append(argument)
            continue
        if "=" not in argument and argument.startswith("--config.") and rest and not rest[0].startswith("--"):
            argument += f"={rest.pop(0)}"
        overrides.append(argument)
    return plain, overrides
