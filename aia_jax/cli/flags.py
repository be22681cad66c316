"""Flags in, an exit code out: the frame around every command with a config."""

import argparse
import contextlib
import difflib
import inspect
import itertools
import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from aia_jax.cli.distributed import define_host_flags, join_hosts
from aia_jax.cli.xla_flags import apply_preset, define_xla_flags
from aia_jax.data.cache import cache_root
from aia_jax.training.run_record import hint_trained_root
from aia_jax.utils.config import check_fields
from aia_jax.utils.errors import InputError, Interrupted, NonFiniteLossError

EXIT_INPUT, EXIT_NON_FINITE = 2, 3


def define_flags(description: str, **strings: str) -> flags.FlagValues:
    """The flag that all commands share, `--config` (with `--config.field=value`), and flags of one's own.

    Args:
        description: what --help says.
        strings: name to help of string flags, None if not given.
    """
    sys.modules["__main__"].__doc__ = description
    config_flags.DEFINE_config_file("config", help_string="Config file, for example configs/demo.py.")
    for name, text in strings.items():
        flags.DEFINE_string(name, None, text)
    require("config", "configs/demo.py")
    for name in ("config", *strings):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])  # --help shows it
    return flags.FLAGS


def define_strings(name: str, text: str) -> None:
    """A string flag that may be given several times; None if it is not."""
    flags.DEFINE_multi_string(name, None, text)
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def require(name: str, example: str) -> None:
    """A flag that must be given."""
    flags.register_validator(name, lambda value: value is not None, f"is needed, as in --{name} {example}")


def define_device_flags() -> None:
    """The flags of commands that may run on many devices: --distributed with its like, and --xla_preset."""
    define_host_flags()
    define_xla_flags()


def run(command: Callable[[ConfigDict], int | None]) -> None:
    """Parses the flags, runs `command(config)`, which may return an exit code, and exits.

    Exit codes: 0 done, 1 bad flags, 2 bad input, 3 non-finite loss, 128 + signal when interrupted.
    """

    def main(argv: Sequence[str]) -> int:
        if len(argv) > 1:
            return fail(f"unexpected argument {argv[1]!r}; every argument is a flag, see --help")
        return run_with_exit_code(start)

    def start() -> int | None:
        try:
            config = flags.FLAGS.config
        except OSError as error:
            raise InputError(str(error)) from error
        check_fields(config)
        _set_up_devices()
        workdir = flags.FLAGS.workdir if "workdir" in flags.FLAGS else None
        with hint_trained_root(Path(workdir), config) if workdir else contextlib.nullcontext():
            return command(config)

    app.run(main, flags_parser=_parse)


def run_with_exit_code(command: Callable[[], int | None]) -> int:
    """Calls `command` and tells what goes wrong in one line; the exit code, see `run`."""
    try:
        return command() or 0
    except InputError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except NonFiniteLossError as error:
        return fail(str(error), EXIT_NON_FINITE)
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        return 128 + interruption.signum
    except KeyboardInterrupt:
        return fail("interrupted", 130)


def positive(text: str) -> int:
    """A flag's number, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def not_negative(text: str) -> int:
    """A flag's number, at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {number}")
    return number


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves as little behind as Ctrl-C does."""

    def leave(signum: int, _frame: Any) -> NoReturn:
        raise SystemExit(128 + signum)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def enable_compilation_cache() -> None:
    """What XLA compiles is kept, so that a second call need not wait for it."""
    jax.config.update("jax_compilation_cache_dir", str(cache_root("") / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _set_up_devices() -> None:
    given = flags.FLAGS
    if "xla_preset" in given:
        apply_preset(given.xla_preset)
    if "distributed" in given:
        join_hosts(given.distributed, given.num_processes, given.process_id)


def _parse(argv: Sequence[str]) -> list[str]:
    """absl's parser, with a config's own mistakes told without a traceback."""
    logging.set_verbosity(logging.WARNING)
    try:
        _check_config(argv)
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        sys.exit(fail(_unknown_fields(argv) or str(error)))
    except (OSError, InputError, TypeError, ValueError) as error:
        sys.exit(fail(str(error)))


def _check_config(argv: Sequence[str]) -> None:
    """Raises InputError if the config is not there, or does not know its argument, as `:corel5k`."""
    if not _named_config(argv):
        return
    path, *argument = _named_config(argv).split(":", 1)
    if not Path(path).is_file():
        raise InputError(f"--config {path}: no such file")
    with contextlib.suppress(OSError, SyntaxError, ImportError):  # these absl's parser tells
        get_config = runpy.run_path(path).get("get_config")
        if argument and not (callable(get_config) and inspect.signature(get_config).parameters):
            raise InputError(f"{path} takes no argument, {argument[0]!r} was given")
        try:
            get_config(*argument)
        except ValueError as error:
            raise InputError(str(error)) from error


def _unknown_fields(argv: Sequence[str]) -> str:
    known = _fields(_plain_config(argv), "--config.")
    given = [argument.split("=")[0] for argument in argv if argument.startswith("--config.")]
    lines = []
    for name in given:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.5))
            lines.append(f"the config has no field {name}" + (f"; nearest: {near}" if near else ""))
    return "\n".join(lines)


def _plain_config(argv: Sequence[str]) -> ConfigDict:
    """The config that `argv` names, without its overrides."""
    path, *argument = _named_config(argv).split(":", 1)
    return runpy.run_path(path)["get_config"](*argument)


def _named_config(argv: Sequence[str]) -> str:
    following = dict(itertools.pairwise(argv))
    given = (argument.split("=", 1)[1] for argument in argv if argument.startswith("--config="))
    return next(given, following.get("--config", ""))


def _fields(config: ConfigDict, prefix: str) -> list[str]:
    names = []
    for name, value in config.items():
        names += _fields(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name]
    return names


def fail(message: str, code: int = EXIT_INPUT) -> int:
    """Prints an error; returns the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code
