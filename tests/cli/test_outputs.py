import errno
import os
import signal
import types
from pathlib import Path

import pytest

from aia_jax.cli.outputs import check_output_folder, staged_output
from aia_jax.utils.errors import InputError


def test_files_move_to_the_output_at_the_end_in_the_order_of_their_writing(tmp_path, monkeypatch):
    output, names = tmp_path / "deep" / "out", ["model.onnx", "labels.txt", "a.json"]
    moved, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: (moved.append(path.name), replace(path, target)))
    with staged_output(output) as folder:
        for seconds, name in enumerate(names):
            (folder / name).write_text(name)
            os.utime(folder / name, (seconds, seconds))
            assert not (output / name).exists()
    assert {path.name: path.read_text() for path in output.iterdir()} == {name: name for name in names}
    assert moved == names


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (OSError(errno.ENOSPC, "full"), InputError, "out is full: about 2.0 MB are needed there; --output"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (signal.SIGTERM, SystemExit, "143"),
    ],
)
def test_a_failure_leaves_the_earlier_files_alone(tmp_path, failure, error, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text("old")
    with pytest.raises(error, match=message), staged_output(tmp_path / "out", 2_000_000) as folder:  # noqa: PT012
        (folder / "a.json").write_text("new")
        if failure is signal.SIGTERM:
            signal.raise_signal(failure)
        raise failure
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"a.json": "old"}


def test_the_room_is_checked_first(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(InputError, match=r"is full: about 0\.3 MB are needed"), staged_output(tmp_path, 300_000):
        pytest.fail("the work has begun")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    message = "deep cannot be written: Not a directory; --output names another place"
    with pytest.raises(InputError, match=message), staged_output(tmp_path / "file" / "deep"):
        pytest.fail("the work has begun")


def test_existing_outputs_need_force(tmp_path):
    (tmp_path / "a").write_text("")
    (tmp_path / "b").mkdir()
    check_output_folder(tmp_path, ["a"], force=True)
    check_output_folder(tmp_path, ["c"])
    for folder, files, message in (
        (tmp_path / "a", [], "--output .*a is a file; name a folder"),
        (tmp_path, ["c", "a"], "a is there already; --force replaces it, --output names another place"),
        (tmp_path, ["b"], "b is a folder; name another --output"),
    ):
        with pytest.raises(InputError, match=message):
            check_output_folder(folder, files)
