"""The two programs as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def program(name: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, str(REPOSITORY / name), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("name", "arguments", "code", "message"),
    [
        ("train.py", ["--config.batch_sise=8"], 2, "nearest: --config.batch_size"),
        ("train.py", ["--config.data.nam=x"], 2, "nearest: --config.data.name"),
        ("train.py", ["--config.batch_size=many"], 1, "batch_size"),
        ("train.py", ["leftover"], 2, "unexpected argument 'leftover'"),
        ("train.py", ["--config.data.name=corel5k", "--config.data.root=/no/such/root"], 2, "/no/such/root"),
        ("eval.py", ["--split=dev"], 1, "train|validation|test"),
        ("eval.py", [], 2, "holds no checkpoints"),
    ],
)
def test_mistakes_are_told_without_a_traceback(tmp_path, name, arguments, code, message):
    result = program(name, f"--config={REPOSITORY}/configs/demo.py", f"--workdir={tmp_path}/run", *arguments)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_missing_config_is_named(tmp_path):
    result = program("train.py", f"--config={tmp_path}/none.py", f"--workdir={tmp_path}/run")
    assert result.returncode == 2
    assert "none.py" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_help_helps(name):
    result = program(name, "--help")
    assert "configs/demo.py" in result.stdout
    assert "--workdir" in result.stdout
