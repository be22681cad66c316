"""The two programs as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time
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


def test_a_workdir_that_is_a_file_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    result = program(
        "train.py",
        f"--config={REPOSITORY}/configs/demo.py",
        f"--workdir={tmp_path}/run",
        "--config.data.num_train=100",
        "--config.data.num_test=20",
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert f"{tmp_path}/run" in result.stderr


def test_a_missing_config_is_named(tmp_path):
    result = program("train.py", f"--config={tmp_path}/none.py", f"--workdir={tmp_path}/run")
    assert result.returncode == 2
    assert result.stderr == f"error: --config {tmp_path}/none.py: no such file\n"


def test_missing_flags_are_asked_for():
    result = program("train.py")
    assert result.returncode == 1
    assert "is needed, as in --config configs/demo.py" in result.stderr
    assert "is needed, as in --workdir runs/demo" in result.stderr


def test_the_root_that_a_run_was_trained_with_is_recalled(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"data": {"root": "/my photos"}}))
    config = f"--config={REPOSITORY}/configs/corel5k.py"
    result = program("train.py", config, f"--workdir={run}", "--config.data.root=/no/such/root")
    assert result.returncode == 2
    assert f"{run} was trained with --config.data.root='/my photos'" in result.stderr


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("train.py", ["configs/demo.py", "--workdir", "--config.init_backbone"]),
        ("eval.py", ["configs/demo.py", "--workdir", "--weights", "--thresholds"]),
        ("convert_weights.py", ["configs/corel5k.py", "--input", "--output", "--verify", "--reverse"]),
    ],
)
def test_help_helps(name, shown):
    result = program(name, "--help")
    for text in shown:
        assert text in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --workdir, the folder of a run, or --weights"),
        (["--workdir=a", "--weights=b"], "give --workdir, the folder of a run, or --weights"),
        (["--weights=a.pth"], "--weights FILE needs --output"),
        (["--weights=a.pth", "--output=b"], "a.pth is no file"),
    ],
)
def test_what_to_evaluate_is_asked_for(arguments, message):
    result = program("eval.py", f"--config={REPOSITORY}/configs/demo.py", *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("improved_loss", "vg500", "configs/improved_loss.py:vg500 is unknown; known: corel5k, espgame, iaprtc12"),
        ("corel5k_lite", "mlp", "configs/corel5k_lite.py:mlp is unknown; known: gap, attention"),
        ("demo", "large", "configs/demo.py takes no argument, 'large' was given"),
    ],
)
def test_unknown_config_arguments_are_told(tmp_path, name, argument, message):
    result = program("train.py", f"--config={REPOSITORY}/configs/{name}.py:{argument}", f"--workdir={tmp_path}/run")
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone_only"], "--backbone_only goes with --reverse"),
        (["--reverse", "--verify"], "--reverse goes without --verify"),
        (["--split=test"], "--images and --split go with --verify"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(tmp_path, arguments, message):
    config = f"--config={REPOSITORY}/configs/demo.py"
    result = program("convert_weights.py", config, "--input=a.pth", f"--output={tmp_path}/run", *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr


def test_a_malicious_file_is_refused_by_the_command(tmp_path):
    torch = pytest.importorskip("torch", reason="writing a .pth file needs torch: pip install '.[test]'")
    torch.save({"state_dict": _Payload(f"touch {tmp_path}/marker")}, tmp_path / "evil.pth")
    result = program(
        "convert_weights.py",
        f"--config={REPOSITORY}/configs/demo.py",
        f"--input={tmp_path}/evil.pth",
        f"--output={tmp_path}/run",
    )
    assert result.returncode == 2, result.stderr
    assert "nothing in it was executed" in result.stderr
    assert "Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"evil.pth"}


class _Payload:
    """Runs a command where it is unpickled carelessly."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_continues(tmp_path):
    small = {
        "epochs": 3,
        "batch_size": 8,
        "log_every": 1,
        "data.image_size": 32,
        "data.num_train": 400,
        "data.num_test": 20,
        "data.cache_dir": tmp_path / "cache",
        "model.hidden_size": 16,
        "model.num_heads": 2,
        "model.feedforward_size": 16,
    }
    command = [sys.executable, str(REPOSITORY / "train.py"), f"--config={REPOSITORY}/configs/demo.py"]
    command += [f"--workdir={tmp_path}/run", *(f"--config.{name}={value}" for name, value in small.items())]
    environment = {**os.environ, "XLA_FLAGS": ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    records = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (records.exists() and records.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "saved; the same command continues there" in errors
    assert "Traceback" not in errors
    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "continuing" in again.stdout
    steps = [line["step"] for line in map(json.loads, records.read_text().splitlines()) if line["kind"] == "train"]
    assert steps == list(range(1, 3 * 360 // 8 + 1))
