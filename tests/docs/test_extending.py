"""The examples of `docs/extending.md` run: their edits apply to a copy of the sources, and their checks hold there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.xla_flags import xla_flags

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()


def edit(source, diff):
    """Applies a diff whose hunks are separated by `@@`; the lines to replace must occur once."""
    for hunk in diff.split("\n@@\n"):
        before, after = (
            "\n".join(line[1:] for line in hunk.splitlines() if line[:1] in (" ", sign)) for sign in ("-", "+")
        )
        assert source.count(before) == 1, f"these lines occur {source.count(before)} times:\n{before}"
        source = source.replace(before, after)
    return source


@pytest.mark.slow
def test_the_examples_run_on_a_copy_of_the_sources(tmp_path):
    for folder in ("aia_jax", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    checks = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL):
        first, _, rest = block.partition("\n")
        if language == "diff":
            path = tmp_path / first.removeprefix("--- ")
            path.write_text(edit(path.read_text(), rest))
        elif first.startswith("# ") and first.endswith(".py"):
            path = tmp_path / first.removeprefix("# ")
            assert not path.exists()
            path.write_text(f"{rest}\n")
        else:
            checks.append(block)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "XLA_FLAGS": xla_flags()}
    command = [sys.executable, "-c", "\n\n".join(checks)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(checks) == len(re.findall("^## ", PAGE, re.MULTILINE))
