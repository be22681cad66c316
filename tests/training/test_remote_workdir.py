"""Runs in object storage: what is uploaded, and which side wins when a run continues."""

import json
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from aia_jax.training import remote_workdir
from aia_jax.training.checkpoint_recovery import saved_steps
from aia_jax.training.remote_workdir import RemoteWorkdir, run_with_results
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError, Interrupted
from aia_jax.utils.folder_copy import FolderCopy
from aia_jax.utils.storage_folders import download_folder
from tests.helpers.toy_task import StopAt, ToyTask, assert_same_checkpoint, run, toy_config

URL = "gs://bucket/runs/a"


@pytest.fixture
def bucket(tmp_path, storage, monkeypatch) -> Path:
    """The folder behind `URL`. Nothing waits for seconds."""
    monkeypatch.setattr(remote_workdir, "INTERVAL", 0.05)
    monkeypatch.setattr(remote_workdir, "SILENCE", 0.3)
    monkeypatch.setattr(remote_workdir, "_ATTEMPTS", (0, 0.01))
    return tmp_path / "cloud" / "bucket" / "runs" / "a"


@pytest.fixture
def on_machine(tmp_path, monkeypatch):
    """Returns a function that chooses the machine: each has its own cache."""

    def choose(name: str) -> None:
        monkeypatch.setenv("AIA_JAX_CACHE", str(tmp_path / f"cache of {name}"))

    return choose


def train(task: ToyTask | None = None, **overrides) -> Trainer:
    config = task.config if task else toy_config(**overrides)
    remote = RemoteWorkdir(URL)
    with remote.opened():
        return run(config, remote.path, task)


def killed_before_upload(monkeypatch, work) -> None:
    """Runs `work` as if the process was killed before it could send anything after its start."""

    def die(*_args: object) -> None:
        raise SystemError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(remote_workdir, "INTERVAL", 1000)
        patched.setattr(remote_workdir._Uploads, "__exit__", die)
        with pytest.raises(SystemError, match="killed"):
            work()


def stop(step: int, **overrides) -> None:
    with pytest.raises(Interrupted):
        train(StopAt(toy_config(**overrides), step, signal.SIGTERM))


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_continues_on_another_machine_has_the_same_bits(bucket, on_machine, tmp_path):
    run(toy_config(), tmp_path / "local")
    on_machine("a")
    stop(5)
    assert saved_steps(bucket)[-1] == 5
    assert json.loads((bucket / ".writer.json").read_bytes())["time"] is None
    on_machine("b")
    trainer = train()
    assert_same_checkpoint(trainer, tmp_path / "local", bucket)
    assert saved_steps(bucket) == saved_steps(tmp_path / "local")
    assert {"config.json", "environment.json", "metrics.jsonl"} <= names(bucket)
    assert not [name for name in names(bucket) if "tmp" in name or ".lock" in name]


def test_changes_are_uploaded_while_training_runs(bucket):
    remote = RemoteWorkdir(URL)
    with remote.opened():
        (remote.path / "metrics.jsonl").write_text("1\n")
        wait_for(lambda: (bucket / "metrics.jsonl").exists())
        (remote.path / "metrics.jsonl").write_text("1\n2\n")
        wait_for(lambda: (bucket / "metrics.jsonl").read_text() == "1\n2\n")
        (remote.path / "metrics.jsonl").unlink()
        wait_for(lambda: not (bucket / "metrics.jsonl").exists())


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_after_a_kill_the_same_machine_continues_from_its_own_newer_checkpoint(bucket, on_machine, monkeypatch):
    on_machine("a")
    stop(4)
    killed_before_upload(monkeypatch, lambda: stop(8))
    assert saved_steps(bucket)[-1] == 4
    remote = RemoteWorkdir(URL)
    with remote.opened():
        assert saved_steps(remote.path)[-1] == 8
    assert saved_steps(bucket)[-1] == 8


def test_a_copy_that_another_machine_overtook_is_kept_and_never_mixed(bucket, on_machine, monkeypatch, capsys):
    on_machine("a")
    stop(4)
    killed_before_upload(monkeypatch, lambda: stop(8))
    own = RemoteWorkdir(URL).path
    on_machine("b")
    stop(6)
    on_machine("a")
    with RemoteWorkdir(URL).opened():
        assert saved_steps(own)[-1] == 6
    assert saved_steps(own.with_name(f"{own.name}.kept-1"))[-1] == 8
    assert "another machine has trained there since; the copy here has files that are not" in capsys.readouterr().out
    assert saved_steps(bucket)[-1] == 6


def test_a_run_removed_from_the_bucket_starts_again_and_its_copy_is_kept(bucket, capsys):
    stop(4)
    own = RemoteWorkdir(URL).path
    shutil.rmtree(bucket)
    with RemoteWorkdir(URL).opened():
        assert not saved_steps(own)
    assert saved_steps(own.with_name(f"{own.name}.kept-1"))[-1] == 4
    assert "there is no run any more" in capsys.readouterr().out


def test_a_run_removed_from_the_bucket_during_training_is_sent_again(bucket, monkeypatch):
    monkeypatch.setattr(remote_workdir, "INTERVAL", 1000)
    remote = RemoteWorkdir(URL)
    with remote.opened():
        (remote.path / "first").write_text("1")
        remote._send()
        assert (bucket / "first").exists()
        shutil.rmtree(bucket)
        (remote.path / "second").write_text("2")
        remote._send()
        assert names(bucket) == {"first", "second"}
        shutil.rmtree(bucket)
    assert names(bucket) == {".writer.json", "first", "second"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"copy": "a", "time": 1}'])
def test_a_damaged_object_of_the_writer_is_named(bucket, content):
    bucket.mkdir(parents=True)
    (bucket / ".writer.json").write_text(content)
    with pytest.raises(InputError, match=r"runs/a/\.writer\.json is damaged .* delete it"):
        RemoteWorkdir(URL).opened().__enter__()


def test_a_missing_bucket_is_refused_and_the_copy_stays(bucket, storage, monkeypatch, capsys):
    stop(4)
    own = RemoteWorkdir(URL).path

    def missing(*_args: object, **_options: object) -> None:
        raise FileNotFoundError("bucket")

    with monkeypatch.context() as patched:
        for method in ("find", "cat_file"):
            patched.setattr(storage, method, missing)
        with pytest.raises(InputError, match="gs://bucket/runs/a: no such bucket, folder or file; check the name"):
            RemoteWorkdir(URL).opened().__enter__()
    assert saved_steps(own)[-1] == 4


def test_files_that_a_cleaner_of_the_disk_removed_come_back_and_stay_in_the_bucket(bucket):
    stop(4)
    remote, before = RemoteWorkdir(URL), names(bucket)
    shutil.rmtree(remote.path)
    with remote.opened():
        assert names(remote.path) == before - {".writer.json"}
    assert names(bucket) == before


def test_a_file_that_was_changed_in_the_bucket_comes_to_the_copy(bucket):
    stop(4)
    (bucket / "thresholds.json").write_text("{}")
    metrics = (bucket / "metrics.jsonl").read_text()
    (bucket / "metrics.jsonl").write_text(f"{metrics}{{}}\n")
    remote = RemoteWorkdir(URL)
    with remote.opened():
        assert (remote.path / "thresholds.json").read_text() == "{}"
        assert (remote.path / "metrics.jsonl").read_text() == f"{metrics}{{}}\n"


@pytest.mark.parametrize("machine", ["a", "b"])
def test_a_truncated_newest_checkpoint_is_set_aside_in_the_bucket(bucket, on_machine, machine, tmp_path, capsys):
    run(toy_config(), tmp_path / "local")
    on_machine("a")
    stop(7)
    newest = max(
        (path for path in (bucket / "checkpoints/7").rglob("d/*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    newest.write_bytes(newest.read_bytes()[:-1])
    on_machine(machine)
    trainer = train()
    assert "the checkpoint of step 7 is damaged (" in capsys.readouterr().out
    assert "digests.json" in names(bucket / "damaged" / "7")
    assert 7 not in saved_steps(bucket)
    assert_same_checkpoint(trainer, tmp_path / "local", bucket)


def test_a_checkpoint_whose_upload_was_interrupted_is_ignored_and_removed(bucket, on_machine, tmp_path):
    on_machine("a")
    stop(7)
    (bucket / "checkpoints" / "7" / "digests.json").unlink()
    assert names(bucket / "checkpoints" / "7")
    on_machine("b")
    remote = RemoteWorkdir(URL)
    with remote.opened():
        assert saved_steps(remote.path) == [6]
    assert not names(bucket / "checkpoints" / "7")


def test_two_processes_of_a_machine_cannot_train_in_one_url(bucket):
    with (
        RemoteWorkdir(URL).opened(),
        pytest.raises(InputError, match="another process of this machine trains in gs://bucket/runs/a; stop it"),
        RemoteWorkdir(URL).opened(),
    ):
        pass


def test_two_machines_cannot_train_in_one_url(bucket, on_machine, capsys):
    on_machine("a")
    with RemoteWorkdir(URL).opened():
        on_machine("b")
        with pytest.raises(InputError, match=r"process \d+ of the machine .* trains in gs://bucket/runs/a; stop it"):
            RemoteWorkdir(URL).opened().__enter__()
    assert "waiting 0.3 s for a sign of life" in capsys.readouterr().out


def test_a_machine_takes_over_from_one_that_died(bucket, on_machine):
    on_machine("a")
    stop(4)
    writer = json.loads((bucket / ".writer.json").read_bytes())
    (bucket / ".writer.json").write_text(json.dumps({**writer, "time": time.time()}))
    on_machine("b")
    train()
    assert saved_steps(bucket)[-1] == 12


def test_a_process_that_another_machine_replaced_stops_and_uploads_nothing(bucket, on_machine, monkeypatch, capsys):
    stopped = threading.Event()
    monkeypatch.setattr(remote_workdir._thread, "interrupt_main", lambda signum: stopped.set())
    remote = RemoteWorkdir(URL)
    writer = {"copy": "another", "host": "other", "process": 1, "time": 5.0}
    replaced = pytest.raises(InputError, match="process 1 of the machine other now trains in gs://bucket/runs/a")
    with replaced, remote.opened():
        (bucket / ".writer.json").write_text(json.dumps(writer))
        assert stopped.wait(30)
        (remote.path / "metrics.jsonl").write_text("mine\n")
    assert json.loads((bucket / ".writer.json").read_bytes()) == writer
    assert names(bucket) == {".writer.json"}


def test_a_failed_upload_is_reported_and_the_same_command_sends_it_later(bucket, storage, capsys):
    remote = RemoteWorkdir(URL)
    refused = pytest.raises(InputError, match="same command on this machine, with the same cache, uploads it")
    with refused, remote.opened():
        storage.refused = "metrics.jsonl"
        (remote.path / "metrics.jsonl").write_text("1\n")
    storage.refused = None
    with RemoteWorkdir(URL).opened():
        pass
    assert (bucket / "metrics.jsonl").read_text() == "1\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")])
def test_an_upload_that_ends_early_says_where_the_files_are(bucket, monkeypatch, capsys, error):
    def fail(*_args: object, **_options: object) -> None:
        raise error

    def work() -> None:
        with remote.opened():
            (remote.path / "file").write_text("")
            monkeypatch.setattr(FolderCopy, "send_changes", fail)

    remote = RemoteWorkdir(URL)
    with pytest.raises(InputError if isinstance(error, OSError) else type(error)) as raised:
        work()
    assert f"is kept in {remote.path}; the same command" in capsys.readouterr().err + str(raised.value)


def test_an_error_of_the_run_has_precedence_over_one_of_the_upload(bucket, storage, capsys):
    remote = RemoteWorkdir(URL)
    interrupted = pytest.raises(KeyError)
    with interrupted, remote.opened():
        storage.refused = "metrics.jsonl"
        (remote.path / "metrics.jsonl").write_text("1\n")
        raise KeyError
    assert "error: gs://bucket/runs/a: no permission" in capsys.readouterr().err


def test_a_workdir_without_rights_is_refused_at_once(bucket, storage):
    storage.refused = ".writer.json"
    with pytest.raises(InputError, match="gs://bucket/runs/a: no permission; check the credentials"):
        RemoteWorkdir(URL).opened().__enter__()


def test_results_of_an_evaluation_go_to_the_bucket(bucket, on_machine):
    on_machine("a")
    stop(4)
    on_machine("b")
    with run_with_results(URL) as workdir:
        assert saved_steps(workdir) == saved_steps(bucket)
        (workdir / "evaluation").mkdir()
        (workdir / "evaluation" / "metrics.json").write_text("{}")
    assert (bucket / "evaluation" / "metrics.json").read_text() == "{}"
    on_machine("a")
    with RemoteWorkdir(URL).opened():
        assert (RemoteWorkdir(URL).path / "evaluation" / "metrics.json").exists()
    assert names(download_folder(URL)) == names(bucket) - {".writer.json"}
