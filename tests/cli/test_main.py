"""The commands as a user starts them: flags, help, exit codes."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aia_jax.cli.exit_codes import run_with_exit_code
from aia_jax.cli.flags import Parser
from aia_jax.cli.main import COMMANDS, main
from aia_jax.utils.errors import InputError, Interrupted, NonFiniteLossError

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = f"--config={REPOSITORY}/configs/demo.py"
SCRIPTS = {"train.py": "train", "eval.py": "evaluate", "convert_weights.py": "convert"}


def program(*command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XLA_FLAGS": ""}
    arguments = [sys.executable, *command]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=120)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", ["--config.batch_sise=8"], "nearest: --config.batch_size"),
        ("train", ["--config.data.nam=x"], "nearest: --config.data.name"),
        ("train", ["--config.batch_size=many"], "batch_size"),
        ("train", ["leftover"], "unexpected argument 'leftover'; every argument is a flag; see aia train --help"),
        ("train", ["--workdri=x"], "unknown flag --workdri, nearest: --workdir; see aia train --help"),
        ("train", ["--xla_preset=fast"], "multi_gpu"),
        ("train", ["--num_processes=x"], "argument --num_processes: invalid int value: 'x'"),
        ("train", ["--num_processes=2"], "--num_processes and --process_id need --distributed=HOST:PORT"),
        ("train", ["--config.data.name=corel5k", "--config.data.root=/no/such/root"], "/no/such/root"),
        ("evaluate", ["--split=dev"], "validation"),
        ("evaluate", [], "holds no checkpoints"),
    ],
)
def test_mistakes_are_reported(tmp_path, capsys, command, arguments, message):
    assert main([command, DEMO, f"--workdir={tmp_path}/run", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_missing_flags_are_named(capsys):
    assert main(["train"]) == 2
    assert capsys.readouterr().err == (
        "error: the following arguments are required: --config, --workdir; see aia train --help\n"
    )


def test_a_workdir_that_is_a_file_is_named(tmp_path, capsys):
    (tmp_path / "run").write_text("")
    small = ["--config.data.num_train=100", "--config.data.num_test=20"]
    assert main(["train", DEMO, f"--workdir={tmp_path}/run", *small]) == 2
    assert f"{tmp_path}/run" in capsys.readouterr().err


def test_a_missing_config_is_named(tmp_path, capsys):
    assert main(["train", f"--config={tmp_path}/none.py", f"--workdir={tmp_path}/run"]) == 2
    assert capsys.readouterr().err == f"error: --config {tmp_path}/none.py: no such file\n"


def test_the_data_root_of_the_training_is_suggested(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"data": {"root": "/my photos"}}))
    config = f"--config={REPOSITORY}/configs/corel5k.py"
    assert main(["train", config, f"--workdir={run}", "--config.data.root=/no/such/root"]) == 2
    assert f"{run} was trained with --config.data.root='/my photos'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --workdir, the folder of a run, or --weights"),
        (["--workdir=a", "--weights=b"], "give --workdir, the folder of a run, or --weights"),
        (["--weights=a.pth"], "--weights FILE needs --output"),
        (["--weights=a.pth", "--output=b"], "a.pth is no file"),
    ],
)
def test_evaluation_needs_one_source_of_weights(arguments, message, capsys):
    assert main(["evaluate", DEMO, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("improved_loss", "vg500", "configs/improved_loss.py:vg500 is unknown; known: corel5k, espgame, iaprtc12"),
        ("corel5k_lite", "mlp", "configs/corel5k_lite.py:mlp is unknown; known: gap, attention"),
        ("demo", "large", "configs/demo.py takes no argument, 'large' was given"),
    ],
)
def test_unknown_config_arguments_are_named(tmp_path, capsys, name, argument, message):
    assert main(["train", f"--config={REPOSITORY}/configs/{name}.py:{argument}", f"--workdir={tmp_path}/run"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone_only"], "--backbone_only goes with --reverse"),
        (["--reverse", "--verify"], "--reverse goes without --verify"),
        (["--split=test"], "--images and --split go with --verify"),
        (["--reverse", "--noreverse", "--backbone_only"], "--backbone_only goes with --reverse"),
        (["--tolerance=nan"], "must be at least 0.0, not nan"),
    ],
)
def test_flags_of_convert_that_do_not_go_together(tmp_path, capsys, arguments, message):
    assert main(["convert", DEMO, "--input=a.pth", f"--output={tmp_path}/run", *arguments]) == 2
    assert message in capsys.readouterr().err


class _Payload:
    """Runs a command where it is unpickled carelessly."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_malicious_file_is_refused(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="writing a .pth file needs torch: pip install '.[test]'")
    torch.save({"state_dict": _Payload(f"touch {tmp_path}/marker")}, tmp_path / "evil.pth")
    assert main(["convert", DEMO, f"--input={tmp_path}/evil.pth", f"--output={tmp_path}/run"]) == 2
    assert "nothing in it was executed" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"evil.pth"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: name a command; see aia --help\n"),
        (["reslts"], "error: unknown command 'reslts'; nearest: results\n"),
        (["zzz"], f"error: unknown command 'zzz'; known: {', '.join(COMMANDS)}\n"),
        (["results", "--jso=x"], "error: unknown flag --jso, nearest: --json; see aia results --help\n"),
    ],
)
def test_unknown_commands_and_flags_are_refused(capsys, arguments, message):
    assert main(arguments) == 2
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("train", ["configs/demo.py", "--workdir", "--config.init_backbone", "--xla_preset", "--distributed"]),
        ("evaluate", ["configs/demo.py", "--workdir", "--weights", "--thresholds", "--html, --nohtml", "float32"]),
        ("convert", ["configs/corel5k.py", "--input", "--output", "--verify", "--reverse"]),
    ],
)
def test_help_shows_examples_and_flags(capsys, name, shown):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "required flags:\n  --config" in text
    for part in shown:
        assert part in text


def test_help_lists_all_commands(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


def parser_of(name: str) -> Parser:
    command = importlib.import_module(f"aia_jax.cli.{name.replace('-', '_')}")
    parser = Parser(command.__doc__, f"aia {name}")
    command.add_arguments(parser)
    return parser


def documented_commands() -> list[str]:
    """Every command line in the pages and in the docstrings of configs."""
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "configs").glob("*.py")]
    text = "\n".join(re.sub(r"\s*\\+\n\s*", " ", page.read_text()) for page in pages)
    lines = re.findall(r"(?:^ *|`|&& )((?:python (?:train|eval|convert_weights)\.py|aia [a-z-]+) [^`\n#]*)", text, re.M)
    return sorted({re.sub(r"\s{2,}.*| \.\.\.$", "", line.replace(r"\|", "|")).strip() for line in lines})


def test_documented_commands_parse():
    commands = [
        command
        for command in documented_commands()
        if "--" in command and "[" not in command and "--data_name" not in command
    ]
    complete = 0
    for command in commands:
        words = shlex.split(re.sub(r"([a-z0-9]+)\|[\w|]+", r"\1", command).replace("process_id=I", "process_id=0"))
        words = [word.replace("num_processes=N", "num_processes=2") for word in words]
        name, arguments = (words[1], words[2:]) if words[0] == "aia" else (SCRIPTS[words[1]], words[2:])
        try:
            parser_of(name).parse(arguments)
            complete += 1
        except InputError as error:  # the sentence names a flag or two
            if not re.search("required|expected one argument", str(error)):
                pytest.fail(f"{command}: {error}")
        except SystemExit:
            complete += "--help" in arguments
    assert complete > 30


def test_fields_of_the_config_are_separated_from_flags():
    parser = parser_of("train")
    given = ["--config", "c.py", "--config.a=1", "--workdir", "w", "--config.b", "-2", "--config.on", "--noconfig.off"]
    arguments = parser.parse(given)
    assert (arguments.config, str(arguments.workdir)) == ("c.py", "w")
    assert arguments.overrides == ["--config.a=1", "--config.b=-2", "--config.on", "--noconfig.off"]


def test_switches_have_two_forms():
    parser = parser_of("evaluate")
    given = ["--config=c.py", "--workdir=w"]
    assert not parser.parse(given).html
    assert parser.parse([*given, "--html"]).html
    assert not parser.parse([*given, "--html", "--nohtml"]).html


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no such label"), 2, "error: no such label\n"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "error: a.txt: No such file or directory\n"),
        (NonFiniteLossError("step 3"), 3, "error: step 3\n"),
        (Interrupted(signal.SIGTERM, "saved"), 128 + signal.SIGTERM, "saved\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_have_exit_codes(error, code, message, capsys):
    def fail():
        raise error

    assert run_with_exit_code(fail) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_are_programs(script):
    done = program(script, DEMO, "--qqq")
    assert done.returncode == 2
    assert done.stderr == f"error: unknown flag --qqq; see {script} --help\n"


def test_the_package_is_a_program(tmp_path):
    shown = program("-m", "aia_jax", "results", str(tmp_path))
    assert shown.returncode == 0
    assert "not measured" in shown.stdout
    assert program("-m", "aia_jax", "result").returncode == 2


def test_a_reader_that_leaves_early_sees_no_traceback():
    command = f"{sys.executable} -m aia_jax results | head -n 1"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert shown.stdout.count("\n") == 1
    assert shown.stderr == ""


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
    command = [sys.executable, str(REPOSITORY / "train.py"), DEMO]
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
