"""Commands on Ray give the rows of the local commands, also after a lost process and an interruption."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types

import numpy as np
import pytest
from PIL import Image

import aia_jax
from aia_jax.cli.main import main
from aia_jax.inference import ray_rows
from aia_jax.inference.parquet_output import ParquetOutput
from tests.helpers.buckets import storage  # noqa: F401  fixture
from tests.helpers.photos import TURNED
from tests.helpers.untrained import write_config

pytestmark = pytest.mark.extras
pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

NUM_PHOTOS = 23


def make_photos(folder, number):
    """Random photos of several sizes, one of them turned by EXIF, and a broken one."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(number - 2):
        shape = (40 + index % 7, 50 + index % 3, 3)
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(folder / f"{index:04}.jpg", quality=90)
    Image.effect_mandelbrot((40, 60), (-2, -1, 1, 1), 50).save(folder / "turned.jpg", exif=TURNED)
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos", NUM_PHOTOS)


@pytest.fixture
def without_ray(monkeypatch):
    """Runs the tasks and actors of Ray in this process, one after the other."""

    def rows(source, num_actors, places, load, model, *, exact=False, in_order=False):
        read, compute = (
            ray_rows.ReadPhotos(source.root, model.image_size, exact),
            ray_rows.ComputeRows(load, model.digest),
        )
        for row in ray_rows.batches_of(places, model.batch_size):
            yield ray_rows.rows_of(compute(read(row)))

    monkeypatch.setattr(ray_rows, "ray_cluster", lambda *_: contextlib.nullcontext(1))
    monkeypatch.setattr(ray_rows, "ray_rows", rows)


def local_labels(folder):
    """`{name: [(label, score)]}` that the local command wrote."""
    lines = map(json.loads, (folder / "annotations.jsonl").read_text().splitlines())
    return {line["image"]: [(label["label"], label["score"]) for label in line["labels"]] for line in lines}


def labels_on_ray(folder):
    """The same of the Parquet files, and `{name: problem}`."""
    rows = parquet.read_table(folder).to_pylist()
    assert len({row["name"] for row in rows}) == len(rows)
    found = {row["name"]: list(zip(row["labels"], row["scores"], strict=True)) for row in rows if not row["problem"]}
    problems = {row["name"]: row["problem"] for row in rows if row["problem"]}
    return {name: [(label, float(str(np.float32(score)))) for label, score in found[name]] for name in found}, problems


@pytest.fixture
def annotate(annotator, photos, tmp_path):
    def run(*flags, output="out"):
        given = ["--workdir", str(annotator), "--images", str(photos), "--output", str(tmp_path / output)]
        return main(["annotate", *given, "--batch_size=8", "--threshold=0", *flags])

    return run


def test_labels_are_those_of_the_local_command(annotate, without_ray, tmp_path, capsys):
    assert annotate(output="local") == 0
    assert annotate("--ray") == 0
    printed = capsys.readouterr()
    assert f"{NUM_PHOTOS} of {NUM_PHOTOS} photos read now" in printed.out
    assert "1 photo with problems, see problems-*.parquet:\n  broken.jpg: not an image" in printed.err
    found, problems = labels_on_ray(tmp_path / "out")
    assert found == local_labels(tmp_path / "local")
    assert problems == {"broken.jpg": "not an image of a known format"}


def test_another_call_reads_what_is_missing(annotate, photos, without_ray, tmp_path, capsys):
    kept = photos / "0000.jpg"
    hidden = kept.rename(tmp_path / "hidden.jpg")
    assert annotate("--ray") == 0
    hidden.rename(kept)
    (photos / "broken.jpg").write_bytes(kept.read_bytes())
    capsys.readouterr()
    assert annotate("--ray") == 0
    assert f"2 of {NUM_PHOTOS} photos read now" in capsys.readouterr().out
    found, problems = labels_on_ray(tmp_path / "out")
    assert len(found) == NUM_PHOTOS
    assert problems == {}
    assert found["broken.jpg"] == found["0000.jpg"]


def test_other_settings_and_damaged_files_are_refused(tmp_path):
    with ParquetOutput(tmp_path, {"top": 3}) as output:
        output.add([("a.jpg", [("sky", 0.5)], ""), ("caf\udce9.jpg", [], "")])
    before = labels_on_ray(tmp_path)
    with ParquetOutput(tmp_path, {"top": 3}) as output:
        assert output.has("caf\udce9.jpg")
        assert not output.has("b.jpg")
    with pytest.raises(aia_jax.InputError, match="describes annotations whose top differ from these"):
        ParquetOutput(tmp_path, {"top": 4})
    (tmp_path / "_settings.json").unlink()
    with pytest.raises(aia_jax.InputError, match=r"has labels-000000\.parquet, without the _settings.json"):
        ParquetOutput(tmp_path, {"top": 3})
    assert labels_on_ray(tmp_path) == before
    assert before[0] == {"a.jpg": [("sky", 0.5)], "caf\\udce9.jpg": []}
    with ParquetOutput(tmp_path, {"top": 4}, force=True) as output:
        assert not output.done
        output.add([("b.jpg", [], "")])
    assert labels_on_ray(tmp_path) == ({"b.jpg": []}, {})
    path = next(tmp_path.glob("labels*"))
    for damaged in (b"PAR1", path.read_bytes().replace(b"b.jpg", b"\xff" * 5).replace(b"\x15", b"\x16", 2)):
        path.write_bytes(damaged)
        with pytest.raises(aia_jax.InputError, match=r"is damaged .*; delete it, and its photos are read again"):
            ParquetOutput(tmp_path, {"top": 4})


def test_labels_are_written_to_object_storage(annotator, photos, storage, without_ray, tmp_path, failing):  # noqa: F811
    cloud = tmp_path / "cloud" / "bucket"
    shutil.copytree(photos, cloud / "photos")
    model = ["annotate", "--workdir", str(annotator), "--threshold=0"]
    flags = [*model, "--images=gs://bucket/photos"]
    assert main([*flags, "--output=gs://bucket/labels", "--ray"]) == 0
    assert main([*model, f"--images={photos}", f"--output={tmp_path}/out"]) == 0
    found, problems = labels_on_ray(cloud / "labels")
    assert found == local_labels(tmp_path / "out")
    assert list(problems) == ["broken.jpg"]
    assert "--images gs://bucket/photos needs --ray" in failing(*flags)
    for url, problem in {"gs://nowhere/labels": "no such bucket", "gs://bucket/other": "no permission"}.items():
        storage.refused = "other"
        with pytest.raises(aia_jax.InputError, match=f"{url}.*: {problem}"):
            ParquetOutput(url, {})


def test_features_are_those_of_the_local_command(photos, config, annotator, without_ray, tmp_path, failing):
    path = write_config(tmp_path / "small.py", config)
    flags = ["features", f"--config={path}", "--weights", str(annotator), "--images", str(photos)]
    assert "broken.jpg: not an image" in failing(*flags, f"--output={tmp_path}/a.npy", "--ray")
    (photos / "broken.jpg").unlink()
    assert main([*flags, f"--output={tmp_path}/local.npy"]) == 0
    assert main([*flags, f"--output={tmp_path}/ray.npy", "--ray"]) == 0
    for suffix in (".npy", ".json"):
        assert (tmp_path / f"local{suffix}").read_bytes() == (tmp_path / f"ray{suffix}").read_bytes()
    assert np.load(tmp_path / "ray.npy").std() > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ray_actors=2"], "--ray_actors needs --ray"),
        (["--ray", "--html"], "--html does not go with --ray; leave one of them out"),
        (["--ray", "--output=photos", "--images=photos"], "--images and --output name one folder"),
        (["--ray", "somewhere"], "--ray somewhere: expected HOST:PORT, such as 10.0.0.1:6379"),
        (["--ray", "127.0.0.1:1"], "--ray 127.0.0.1:1: nothing answers there"),
        (["--ray", "ray://127.0.0.1:1"], "expected HOST:PORT, such as 10.0.0.1:6379, or auto; this machine must be"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(annotator, photos, tmp_path, failing, flags, message):
    pytest.importorskip("ray")
    given = ["--workdir", str(annotator), "--images", str(photos), "--output", str(tmp_path / "out")]
    assert message in failing("annotate", *given, *flags)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("nodes", "wanted", "expected"),
    [
        ([{"CPU": 4, "memory": 4e9}, {"CPU": 4, "memory": 1e8}], None, 2),
        ([{"CPU": 4, "memory": 4e9}, {"CPU": 4, "GPU": 2, "memory": 4e9}], None, 2),
        ([{"CPU": 4, "memory": 4e9}], 4, "4 actors need a CPU each, and one more for reading"),
        ([{"CPU": 4, "memory": 4e9, "GPU": 1}], 2, "2 actors need a GPU each"),
        ([{"CPU": 4, "memory": 1e8}, {"memory": 4e9}], None, "no machine has 0.8 GB of free memory"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(nodes, wanted, expected):
    ray = types.SimpleNamespace(nodes=lambda: [{"Resources": node, "Alive": True} for node in nodes])
    if isinstance(expected, str):
        with pytest.raises(aia_jax.InputError, match=expected):
            ray_rows._number_of_actors(ray, wanted)
    else:
        assert ray_rows._number_of_actors(ray, wanted) == expected


def test_a_machine_without_the_photos_or_with_another_model_is_an_error(annotator, tmp_path):
    from aia_jax.data.photo_sources import PhotoPlace

    other, digest = aia_jax.load(annotator, threshold=0.1), aia_jax.load(annotator, threshold=0.2).digest
    batch = ray_rows.batches_of([PhotoPlace("a.jpg", str(tmp_path / "gone" / "a.jpg"))], 1)[0]
    for folder, message in {
        "gone": r"does not have .*gone; name a folder that all machines share, or a URL; after you solve this",
        "": "has another model, or another version of it",
    }.items():
        photos = ray_rows.ReadPhotos(str(tmp_path / folder), 32, False)(batch)
        with pytest.raises(aia_jax.InputError, match=message):
            ray_rows.rows_of(ray_rows.ComputeRows(lambda: other, digest)(photos))
    failed = ray_rows.ComputeRows(lambda: 1 // 0, digest)(photos)
    with pytest.raises(aia_jax.InputError, match="Ray stopped: ZeroDivisionError: integer division"):
        ray_rows.rows_of(failed)


def descendants(pid):
    """Process IDs below a process, with their command lines."""
    parents = {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
            parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
    found, waiting = {}, [pid]
    while waiting:
        parent = waiting.pop()
        for child in [child for child, of in parents.items() if of == parent]:
            waiting.append(child)
            with contextlib.suppress(OSError), open(f"/proc/{child}/cmdline", "rb") as file:
                found[child] = file.read().replace(b"\0", b" ").decode(errors="replace")
    return found


class Command:
    """`aia annotate` in a process of its own."""

    def __init__(self, annotator, photos, output, *flags):
        command = [sys.executable, "-m", "aia_jax", "annotate", "--workdir", annotator, "--images", photos]
        command += ["--output", output, "--batch_size=4", "--threshold=0", *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {**os.environ, "XLA_FLAGS": ""}  # one device, whose results do not depend on the load
        self.process = subprocess.Popen([*map(str, command)], **pipes, env=environment)
        os.set_blocking(self.process.stderr.fileno(), False)
        self.printed = b""

    def wait_for(self, least):
        """Waits until the bar shows at least `least` photos."""
        while True:
            assert self.process.poll() is None, self.printed.decode()
            self.printed += self.process.stderr.read() or b""
            shown = re.findall(rb"\| (\d+)/", self.printed)
            if shown and int(shown[-1]) >= least:
                return
            time.sleep(0.05)

    def end(self):
        """Returns the exit code and what was printed to stdout and stderr."""
        with self.process:
            os.set_blocking(self.process.stderr.fileno(), True)
            out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out.decode(), (self.printed + err).decode()


@pytest.mark.slow
def test_a_killed_actor_and_an_interruption_lose_and_repeat_nothing(annotator, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    files = tempfile.TemporaryDirectory(prefix="ray")  # the paths of its sockets must be short
    monkeypatch.setenv("RAY_TMPDIR", files.name)
    number = 600
    photos, output = make_photos(tmp_path / "photos", number), tmp_path / "out"
    command = Command(annotator, photos, output, "--ray", "--ray_actors=2")
    command.wait_for(20)
    actors = [pid for pid, line in descendants(command.process.pid).items() if "MapWorker" in line]
    assert len(actors) == 2
    os.kill(actors[0], signal.SIGKILL)
    command.wait_for(150)
    command.process.send_signal(signal.SIGINT)
    code, _, err = command.end()
    assert code == 130
    assert "the same command without --force continues" in err
    before = {path: path.read_bytes() for path in output.glob("labels-*.parquet")}
    kept = len(labels_on_ray(output)[0])
    assert 150 <= kept + 1 < number
    code, out, err = Command(annotator, photos, output, "--ray", "--ray_actors=2").end()
    assert code == 0, err
    assert f"{number - kept} of {number} photos read now" in out
    assert before == {path: path.read_bytes() for path in before}
    assert Command(annotator, photos, tmp_path / "local").end()[0] == 0
    found, problems = labels_on_ray(output)
    assert found == local_labels(tmp_path / "local")
    assert list(problems) == ["broken.jpg"]
    files.cleanup()
