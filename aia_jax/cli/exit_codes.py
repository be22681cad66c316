"""Runs a command and returns an exit code.

0: the command succeeded. 1: the command ended, but a check failed. 2: flags or input cannot be used. 3: the loss is not
finite. 128 + signal: the command was interrupted.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from aia_jax.cli.flags import Parser
from aia_jax.utils.config import read_config
from aia_jax.utils.errors import InputError, Interrupted, NonFiniteLossError


def execute(parser: Parser, run: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None = None) -> int:
    """Parses a command line, reads its config and runs a command. Prints expected errors without a traceback.

    Args:
        run: function that gets the parsed arguments, with `config` as a ConfigDict. It may return an exit code.
        argv: arguments without the name of the program; None: the arguments of this process.

    Returns:
        The exit code.
    """
    has_config = False
    for name in "stdin", "stdout", "stderr":
        if getattr(sys, name) is None:  # closed: a file that is opened later would get its descriptor
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115
        elif name != "stdin" and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")  # for characters that the terminal does not have
    try:
        arguments = parser.parse(sys.argv[1:] if argv is None else argv)
        has_config = getattr(arguments, "config", None) is not None
        if has_config:
            arguments.config_flags = ["--config", arguments.config, *arguments.overrides]
            arguments.config = read_config(arguments.config, arguments.overrides)
        code = run(arguments)
        sys.stdout.flush()
        return code or 0
    except InputError as error:
        return fail(str(error))
    except UnicodeEncodeError as error:
        name = ascii(error.object[:100])
        return fail(f"{name} cannot be a file name in this locale ({error.encoding}); set PYTHONUTF8=1")
    except ValueError as error:
        if not re.search("for (environment 'JAX_|JAX flag)", str(error)):
            raise
        return fail(f"{error}; correct the environment variable")
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of the output, such as `head`, has stopped
            with contextlib.suppress(OSError):  # stdout has no file descriptor, as in tests
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not has_config:  # only the output is incomplete, and no work such as training
                return 0
        unnamed = "the current directory" if isinstance(error, FileNotFoundError) else "the system"
        return fail(f"{error.filename or unnamed}: {error.strerror or error}")
    except MemoryError as error:
        return fail(f"not enough memory: {error}" if str(error) else "not enough memory")
    except NonFiniteLossError as error:
        return fail(str(error), 3)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # JAX's error if the memory of a device is full
            raise
        reason = str(error).splitlines()[0]
        return fail(f"not enough memory on the device: {reason:.300}; a smaller batch or image size needs less")
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        return 128 + interruption.signum
    except KeyboardInterrupt:
        return fail("interrupted", 130)


def end_process(run: Callable[[], int]) -> NoReturn:
    """Ends the process with the exit code that `run` returns, or that of its SystemExit.

    After an interruption, Python's shutdown is skipped: XLA may still compile in a thread, and would crash. Processes
    of one run shut down together, so there it is not skipped.
    """
    try:
        code: Any = run()
    except SystemExit as error:
        code = error.code
    distributed = sys.modules.get("jax.distributed")
    if isinstance(code, int) and code > 128 and not (distributed and distributed.is_initialized()):
        with contextlib.suppress(OSError):  # a reader of the output has stopped
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def fail(message: str, code: int = 2) -> int:
    """Prints an error and returns the exit code `code`."""
    print(f"error: {message}", file=sys.stderr)
    return code


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Raises SystemExit on SIGTERM, so that temporary files are removed as after Ctrl-C."""

    def leave(signum: int, _frame: Any) -> NoReturn:
        raise SystemExit(128 + signum)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
