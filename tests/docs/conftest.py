"""The fixture that parses printed commands without running them."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest

from aia_jax.cli.flags import Parser
from aia_jax.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


class Parsed(BaseException):
    """Raised instead of running a command; not an Exception, so that no command catches it."""


@pytest.fixture
def parse(monkeypatch):
    """Runs a command until its command line is parsed; returns the arguments."""

    def stopping(method):
        def stop(*args, **options):
            raise Parsed(method(*args, **options))

        return stop

    monkeypatch.setattr(Parser, "parse", stopping(Parser.parse))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopping(argparse.ArgumentParser.parse_args))

    def run(tokens):
        program, *rest = tokens
        if program == "python":
            program, rest = (f"{rest[1].replace('.', '/')}.py", rest[2:]) if rest[0] == "-m" else (rest[0], rest[1:])
        monkeypatch.setattr(sys, "argv", [program, *rest])
        try:
            main() if program == "aia" else runpy.run_path(str(ROOT / program), run_name="__main__")
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit:  # an error, or the end of --help
            return None

    return run
