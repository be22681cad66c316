"""What commands find around them: platforms of JAX, home folders, locales, closed streams, the current directory."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from aia_jax.cli.devices import check_devices, enable_compilation_cache
from aia_jax.cli.exit_codes import execute
from aia_jax.cli.flags import Parser
from aia_jax.cli.main import main
from aia_jax.training.runs import run_arrays
from aia_jax.utils.errors import InputError
from tests.helpers.photos import make_photo


def command(*argv: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess:
    call = [sys.executable, "-m", "aia_jax", *argv]
    variables = {**os.environ, "PYTHONPATH": os.getcwd(), **environment}
    wrapped = ["sh", "-c", f'"$@" {shell}', "sh", *call]
    return subprocess.run(wrapped, env=variables, capture_output=True, timeout=120)


def test_a_platform_that_is_not_there_is_named_before_data_are_prepared(tmp_path):
    done = command("train", "--config=demo", f"--workdir={tmp_path}/run", JAX_PLATFORMS="rocm")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: JAX cannot compute as JAX_PLATFORMS=rocm says: Unable to initialize backend")
    assert not (tmp_path / "run").exists()


def test_a_platform_that_is_not_there_is_never_a_damaged_checkpoint(annotator, failing, monkeypatch, tmp_path):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(InputError, match=r"^JAX cannot compute as JAX_PLATFORMS=cuda says: Unable to initialize"):
        run_arrays(annotator)
    monkeypatch.setenv("JAX_PLATFORM_NAME", "gpu")  # the older name of the variable
    with pytest.raises(InputError, match="unset JAX_PLATFORMS and JAX_PLATFORM_NAME to let JAX choose"):
        run_arrays(annotator)
    monkeypatch.delenv("JAX_PLATFORM_NAME")
    run, photos, output = f"--workdir={annotator}", f"--images={tmp_path}", f"--output={tmp_path}/o.npy"
    for argv in (
        ["evaluate", "--config=demo", run],
        ["convert", "--config=demo", "--input=a.pth", output],
        ["features", "--config=demo", "--weights=a.pth", photos, output],
    ):
        assert "JAX cannot compute as JAX_PLATFORMS=cuda says" in failing(*argv)


def test_programs_are_not_kept_without_a_home_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("AIA_JAX_CACHE", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and without an entry of the user
    before = jax.config.jax_compilation_cache_dir
    enable_compilation_cache()
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIA_JAX_CACHE", f"{tmp_path}/file")
    enable_compilation_cache()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("compiled programs are not kept: '~/.cache/aia_jax': this home folder is unknown")
    assert second == (
        f"compiled programs are not kept: {tmp_path}/file/programs cannot be written: Not a directory; "
        "$AIA_JAX_CACHE names another place"
    )
    assert jax.config.jax_compilation_cache_dir == before
    monkeypatch.setenv("AIA_JAX_CACHE", "gs://bucket")
    with pytest.raises(InputError, match="not a path of this machine"):
        enable_compilation_cache()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))  # the user's own folder
    enable_compilation_cache()
    assert not capsys.readouterr().err


def test_switches_of_jax_for_other_programs_do_not_change_the_types(capsys):
    wanted = {"jax_enable_x64": True, "jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"}
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        check_devices()
        assert (jnp.zeros((2, 1)) + jnp.arange(3)).dtype == jnp.float32
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert "JAX_ENABLE_X64 is ignored: aia_jax needs False\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"),
            "error: not enough memory on the device: RES",
        ),
        (ValueError("invalid truth value 'x' for environment 'JAX_ENABLE_X64'"), "correct the environment variable"),
        (
            UnicodeEncodeError("ascii", "猫.jpg", 0, 1, "no"),
            r"'\u732b.jpg' cannot be a file name in this locale",
        ),
        (FileNotFoundError(2, "No such file or directory"), "error: the current directory: No such file"),
    ],
)
def test_errors_of_the_system_are_told_as_that(error, message, capsys):
    def fail(_arguments):
        raise error

    assert execute(Parser("", "aia"), fail, []) == 2
    assert message in capsys.readouterr().err


def test_labels_that_the_terminal_cannot_show_are_written_and_shown_as_escapes(tmp_path):
    for name in "abcdef":
        make_photo(tmp_path / f"{name}.jpg", seed=ord(name))
    rows = "".join(f"{name}.jpg,猫|公園\n" for name in "abcdef")
    (tmp_path / "labels.csv").write_text(f"image,labels\n{rows}", encoding="utf-8")
    argv = ["import-labels", f"--labels={tmp_path}/labels.csv", f"--output={tmp_path}/out"]
    done = command(*argv, PYTHONIOENCODING="latin-1:strict", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="POSIX")
    assert done.returncode == 0, done.stderr
    assert rb"\u732b" in done.stdout
    assert "猫" in (tmp_path / "out/train.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_stop_a_command(tmp_path, closed):
    (tmp_path / "captions.txt").write_text("a dog\n")
    output = tmp_path / "vocabulary.json"
    done = command("vocab", f"{tmp_path}/captions.txt", "--min_count=1", f"--output={output}", shell=closed)
    assert (done.returncode, output.is_file()) == (0, True)


def test_a_current_directory_that_was_deleted_is_named(tmp_path, monkeypatch, failing):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert failing("train", "--config=demo", f"--workdir={tmp_path}") == (
        "error: the current directory: No such file or directory\n"
    )
    assert main(["configs"]) == 0
