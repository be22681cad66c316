"""The commands as a user starts them: flags, help, exit codes."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aia_jax.cli.exit_codes import execute
from aia_jax.cli.flags import Parser
from aia_jax.cli.main import COMMANDS, main
from aia_jax.utils.errors import InputError, Interrupted, NonFiniteLossError

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = f"--config={REPOSITORY}/configs/demo.py"
TRAIN, EVALUATE = ["train", DEMO, "--workdir=run"], ["evaluate", DEMO]
CONVERT = ["convert", DEMO, "--input=a.pth", "--output=run"]
SCRIPTS = ("train.py", "eval.py", "convert_weights.py")


def program(*command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XLA_FLAGS": ""}
    arguments = [sys.executable, *command]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: name a command; see aia --help\n"),
        (["reslts"], "error: unknown command 'reslts'; nearest: results\n"),
        (["zzz"], f"error: unknown command 'zzz'; known: {', '.join(COMMANDS)}\n"),
        (["results", "--jso=x"], "error: unknown flag --jso, nearest: --json; see aia results --help\n"),
        (["annotate", "--images", "-p"], "--images: expected one argument; write a value that begins with - after"),
        (["search", "--images", "p", "-house"], "'-house' begins with -, as flags do; write it last, after --: -- '-h"),
        (["search", "a dog", "--images", "p", "a cat"], "unexpected argument 'a cat'; write it beside the others"),
        (["train"], "error: the following arguments are required: --config, --workdir; see aia train --help\n"),
        ([*TRAIN, "--config.batch_sise=8"], "nearest: --config.batch_size"),
        ([*TRAIN, "--config.data.nam=x"], "nearest: --config.data.name"),
        ([*TRAIN, "--config.batch_size=many"], "batch_size"),
        ([*TRAIN, "leftover"], "unexpected argument 'leftover'; every argument is a flag; see aia train --help"),
        ([*TRAIN, "--workdri=x"], "unknown flag --workdri, nearest: --workdir; see aia train --help"),
        ([*TRAIN, "--xla_preset=fast"], "multi_gpu"),
        ([*TRAIN, "--num_processes=x"], "argument --num_processes: invalid int value: 'x'"),
        ([*TRAIN, "--num_processes=2"], "--num_processes and --process_id need --distributed=HOST:PORT"),
        ([*TRAIN, "--config.data.name=corel5k", "--config.data.root=/no/such/root"], "/no/such/root"),
        (
            [*TRAIN, "--config=none.py"],
            "error: --config none.py: no such file, and no packaged config; `aia configs` lists them\n",
        ),
        ([*TRAIN, f"--config={REPOSITORY}/configs/corel5k_lite.py:mlp"], "corel5k_lite:mlp is unknown; known: gap"),
        ([*EVALUATE, "--workdir=run", "--split=dev"], "validation"),
        ([*EVALUATE, "--workdir=run"], "holds no checkpoints"),
        ([*EVALUATE, "--workdir=run", "--weights=b"], "give --workdir, the folder of a run, or --weights"),
        (EVALUATE, "give --workdir, the folder of a run, or --weights"),
        ([*EVALUATE, "--weights=a.pth"], "--weights FILE needs --output"),
        ([*EVALUATE, "--weights=a.pth", "--output=b"], "a.pth is no file"),
        ([*CONVERT, "--backbone_only"], "--backbone_only needs --reverse"),
        ([*CONVERT, "--reverse", "--verify"], "--reverse cannot be combined with --verify"),
        ([*CONVERT, "--split=test"], "--images and --split need --verify"),
        ([*CONVERT, "--tolerance=nan"], "must be at least 0.0, not nan"),
    ],
)
def test_commands_and_flags_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.rpartition("img/s]\n")[2]  # after a progress bar
    assert error.startswith("error: ")
    assert error == message if message.startswith("error") else message in error
    assert not Path("run/checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("train", ["--config demo ", "--workdir", "--config.init_backbone", "--xla_preset", "--distributed"]),
        ("evaluate", ["--config demo ", "--workdir", "--weights", "--thresholds", "--html", "float32"]),
        ("convert", ["--config corel5k ", "--input", "--output", "--verify", "--reverse"]),
    ],
)
def test_help_shows_examples_and_flags(capsys, name, shown):
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    text = capsys.readouterr().out
    assert [part for part in ("required flags:\n  --config", *shown) if part not in text] == []


def test_commands_work_without_docstrings():
    assert "usage: aia" in Parser(None, "aia").format_help()  # python -OO removes docstrings


def test_help_lists_all_commands(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_heavy_package(command):
    heavy = "jax", "flax", "orbax", "scipy", "matplotlib", "sklearn", "nltk", "grain", "torch", "tensorboardX"
    code = f"import sys; sys.argv[1:] = {[*filter(None, [command]), '--help']}\nfrom aia_jax.cli.main import main"
    code += f"\ntry: main()\nexcept SystemExit: pass\nprint([name for name in {heavy} if name in sys.modules])"
    assert program("-c", code).stdout.splitlines()[-1] == "[]"


def parser_of(name: str) -> Parser:
    command = importlib.import_module(f"aia_jax.cli.{name.replace('-', '_')}")
    parser = Parser(command.__doc__, f"aia {name}")
    command.add_arguments(parser)
    return parser


def test_fields_of_the_config_are_parsed():
    parser = parser_of("train")
    given = ["--config", "c.py", "--config.a=1", "--workdir", "w", "--config.b", "-2", "--config.on", "--noconfig.off"]
    arguments = parser.parse(given)
    assert (arguments.config, str(arguments.workdir)) == ("c.py", "w")
    assert arguments.overrides == ["--config.a=1", "--config.b=-2", "--config.on", "--noconfig.off"]
    assert parser_of("evaluate").parse(["--config=c.py", "--output", ""]).output is None


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no such label"), 2, "error: no such label\n"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "error: a.txt: No such file or directory\n"),
        (MemoryError(), 2, "error: not enough memory\n"),
        (NonFiniteLossError("step 3"), 3, "error: step 3\n"),
        (Interrupted(signal.SIGTERM, "saved"), 128 + signal.SIGTERM, "saved\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_have_exit_codes(error, code, message, capsys):
    def fail(arguments):
        raise error

    assert execute(Parser("", "aia"), fail, []) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(("raised", "code"), [("KeyboardInterrupt", 130), ("SystemExit(143)", 143)])
def test_an_interrupted_program_ends_without_the_shutdown_of_python(raised, code):
    lines = ["import atexit, os", "from aia_jax.cli import annotate, main", "def stop(*_):", f"    raise {raised}"]
    lines += ["annotate.run = stop", "atexit.register(os.abort)", "main.run_program()"]
    done = program("-c", "\n".join(lines), "annotate", "--images", "photos")
    assert (done.returncode, done.stderr) == (code, "error: interrupted\n" if code == 130 else "")


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


@pytest.mark.parametrize("arguments", ["results", "--help", "train --help"])
def test_a_reader_that_leaves_early_sees_no_traceback(arguments):
    command = f"{sys.executable} -m aia_jax {arguments} | head -n 1"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert shown.stdout.count("\n") == 1
    assert shown.stderr == ""
