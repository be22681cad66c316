"""Images that are decoded from records equal those of the prepared copy, in the same batches."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aia_jax.cli.main import main
from aia_jax.data.annotation.channel_stats import read_channel_stats
from aia_jax.data.annotation.datasets import load_split
from aia_jax.data.annotation.photo_records import write_dataset
from aia_jax.data.pipeline import eval_batches, train_batches
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.tasks.frozen_backbone import FrozenBackboneTask
from aia_jax.tasks.registry import make_task
from aia_jax.utils.config import read_config
from aia_jax.utils.errors import InputError
from tests.helpers.buckets import storage  # noqa: F401, a fixture
from tests.helpers.photos import LABELS, TURNED, data_config, make_dataset, make_photo, write_annotations
from tests.helpers.stream_worker import BATCHES, stream_config
from tests.helpers.untrained import write_run
from tests.helpers.xla_flags import xla_flags

pytestmark = pytest.mark.extras
pytest.importorskip("array_record", reason="array_record is not installed: pip install -e '.[tfds]'")
pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed: pip install -e '.[tfds]'")

ROOT = Path(__file__).resolve().parents[3]
NUM_IMAGES = 21


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """The root of Corel-5k with 21 training photos and 5 test photos."""
    root = tmp_path_factory.mktemp("photos")
    make_dataset(root, NUM_IMAGES)
    names = [f"{number}.png" for number in range(5)]
    for number, name in enumerate(names):
        make_photo(root / "Corel-5k" / "images" / name, 100 + number, (30 + number, 50))
    samples = [{"image_name": name, "image_labels": LABELS[:2]} for name in names]
    write_annotations(root, samples, split="test")
    return root


@pytest.fixture(scope="module")
def records(photos, tmp_path_factory) -> Path:
    """The root with the records of these photos, but without the photos."""
    root = tmp_path_factory.mktemp("records")
    assert write_dataset(photos, "corel5k", root) == {"train": NUM_IMAGES, "test": 5}
    assert not list(root.rglob("*.jpeg"))
    return root


@pytest.fixture
def own_records(records, tmp_path) -> Path:
    """A copy of the records, to damage."""
    return Path(shutil.copytree(records, tmp_path / "own"))


def load(root: Path, split: str = "train", placement: str = "stream", size: int = 16, **fields):
    return load_split(data_config(root, root / "cache", placement=placement, **fields), split, size)


def assert_equal_batches(actual, expected, count: int) -> None:
    for one, other in itertools.islice(zip(actual, expected, strict=True), count):
        assert set(one) == set(other)
        for name, rows in one.items():
            assert rows.dtype == other[name].dtype
            np.testing.assert_array_equal(rows, other[name])


def test_a_streamed_split_has_the_interface_and_the_bits_of_the_prepared_one(photos, records):
    streamed, prepared = load(records), load(photos, placement="host")
    assert (streamed.image_names, streamed.labels) == (prepared.image_names, prepared.labels)
    np.testing.assert_array_equal(streamed.targets, prepared.targets)
    images, expected = streamed.images, prepared.images
    assert (images.shape, images.dtype, len(images)) == (expected.shape, expected.dtype, NUM_IMAGES)
    for index in (3, -1, slice(2, 9, 3), slice(None), np.array([4, 4, 0]), np.array([[1], [2]]), np.array([], int)):
        np.testing.assert_array_equal(images[index], expected[index])
    part, same = (split.take([7, 2, 5]).take(np.array([2, 0])) for split in (streamed, prepared))
    assert part.image_names == same.image_names == ("5.jpeg", "7.jpeg")
    np.testing.assert_array_equal(part.images, same.images)
    assert not (records / "cache").exists()


@pytest.mark.parametrize("start", [0, 4])
def test_two_shuffled_epochs_are_equal_also_from_the_middle_of_an_epoch(photos, records, start):
    """21 images are 10.5 batches of 4 in two epochs, so a batch has rows of both epochs."""
    streamed, prepared = (
        train_batches(
            {"image": split.images, "target": split.targets}, NUM_IMAGES, batch_size=4, seed=3, start_step=start
        )
        for split in (load(records, num_workers=2), load(photos, placement="host"))
    )
    assert_equal_batches(streamed, prepared, 11 - start)


@pytest.mark.parametrize("process", [0, 1])
def test_evaluation_batches_with_padding_are_equal(photos, records, process):
    part = {"batch_size": 4, "process_index": process, "process_count": 2}
    streamed, prepared = (
        eval_batches({"image": split.images}, len(split), **part)
        for split in (load(records, "test"), load(photos, "test", "host"))
    )
    assert_equal_batches(streamed, prepared, 2)
    last = list(eval_batches({"image": load(records, "test").images}, 5, **part))[-1]
    assert last["mask"].tolist() == [process == 0, False]


def test_evaluation_without_photos_has_the_scores_and_the_page_of_prepared_images(photos, records, tmp_path):
    fields = {"eval.batch_size": 8, "data.image_size": 16, "model.head": "gap"}
    workdir = None
    for root, placement in ((photos, "host"), (records, "stream")):
        config = stream_config(root, placement)
        config.update_from_flattened_dict(fields)
        workdir = workdir or write_run(tmp_path / "run", config)
        evaluate(config, workdir, tmp_path / placement, html=True)
    scores = [np.load(tmp_path / name / "scores.npz")["scores"] for name in ("stream", "host")]
    assert scores[0].shape == (5, 3)
    np.testing.assert_array_equal(*scores)
    assert b"data:image/webp" in (tmp_path / "stream" / "report.html").read_bytes()


def test_two_processes_stream_disjoint_parts_whose_union_is_the_batch(photos, own_records):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "stream_worker.py"), str(own_records), str(port)]
    environment = os.environ | {"XLA_FLAGS": xla_flags(4), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen([*command, str(number)], env=environment, **pipes) for number in range(2)]
    try:
        printed = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(printed)
    parts = [np.load(own_records / f"{process}.npz") for process in range(2)]
    expected = list(itertools.islice(AnnotationTask(stream_config(photos, "host")).train_batches(0), BATCHES))
    for step, batch in enumerate(expected):
        indices = [set(part["index"][step].tolist()) for part in parts]
        assert step or not indices[0] & indices[1]  # all rows of the first batch are of one epoch
        for name, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[name][step] for part in parts]), rows)
        sums = batch["image"].reshape(8, -1).sum(axis=1, dtype=np.int64)  # of the two rows of each device
        shards = np.concatenate([part["shards"][step] for part in parts])
        np.testing.assert_array_equal(shards, np.stack([np.arange(0, 16, 2), sums], axis=1))


def test_broken_photos_are_named_and_no_records_are_left(photos, tmp_path):
    root, output = Path(shutil.copytree(photos, tmp_path / "root")), tmp_path / "out"
    images = root / "Corel-5k" / "images"
    (images / "3.jpeg").write_bytes((images / "3.jpeg").read_bytes()[:400])
    (images / "9.jpeg").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"(?s)2 photo\(s\) cannot be used.*3\.jpeg: .*9\.jpeg: a web page") as raised:
        write_dataset(root, "corel5k", output)
    assert "4.jpeg" not in str(raised.value)
    (images / "3.jpeg").unlink()
    with pytest.raises(InputError, match=r"1 photo\(s\) cannot be used.*\n.*3\.jpeg: No such file"):
        write_dataset(root, "corel5k", output)
    assert not [path for path in output.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_records_are_kept_until_a_photo_or_the_annotations_change(photos, tmp_path):
    root = Path(shutil.copytree(photos, tmp_path / "root"))

    def write() -> list[tuple[str, int]]:
        """Writes the records beside the photos, which may stay in the same root."""
        write_dataset(root, "corel5k", root)
        shards = (root / "Corel-5k" / "records").rglob("*.array_record-*")
        return sorted((str(path.relative_to(root)), path.stat().st_mtime_ns) for path in shards)

    test, first = write()
    assert write() == [test, first]
    make_photo(root / "Corel-5k" / "images" / "3.jpeg", 77)
    assert write()[0] == test
    assert write()[1] != first
    np.testing.assert_array_equal(load(root).images, load(root, placement="host").images)
    document = json.loads((root / "Corel-5k" / "train.json").read_text())
    document["samples"].pop()
    write_annotations(root, document["samples"])
    with pytest.raises(InputError, match=r"records has train-\w+, whose names, labels or order differ; `aia prepare"):
        load(root)
    assert len(write()) == 2
    assert len(load(root)) == NUM_IMAGES - 1


def test_other_data_in_the_output_stay(photos, tmp_path):
    make_dataset(tmp_path)
    before = (tmp_path / "Corel-5k" / "train.json").read_bytes()
    with pytest.raises(InputError, match=r"Corel-5k has other data, whose train\.json would be replaced; --output"):
        write_dataset(photos, "corel5k", tmp_path)
    assert (tmp_path / "Corel-5k" / "train.json").read_bytes() == before


def test_other_data_in_a_bucket_stay_and_an_interrupted_upload_continues(photos, tmp_path, storage, capsys):  # noqa: F811
    command = ["prepare", "custom", "--root", str(photos / "Corel-5k"), "--output"]
    (photos / "Corel-5k" / "channel_stats.json").write_text('{"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}')
    there = tmp_path / "cloud" / "bucket"
    shutil.copytree(make_dataset(tmp_path / "other").parent, there / "other")
    before = (there / "other" / "train.json").read_bytes()
    assert main([*command, "gs://bucket/other"]) == 2
    message = "gs://bucket/other has other data, whose train.json would be replaced; --output names another place"
    assert message in capsys.readouterr().err
    assert (there / "other" / "train.json").read_bytes() == before
    storage.refused = "bucket/new/records"
    assert main([*command, "gs://bucket/new"]) == 2
    assert (there / "new" / "train.json").exists()
    assert not (there / "new" / "records").exists()
    storage.refused = None
    assert main([*command, "gs://bucket/new"]) == 0


def test_a_disk_that_is_full_of_records_is_named(photos, tmp_path, monkeypatch):
    from aia_jax.data.annotation import tfds_builders

    def full(_builder: object) -> None:
        raise RuntimeError("write() failed: No space left on device; writing a.array_record")

    monkeypatch.setattr(tfds_builders, "prepare", full)
    with pytest.raises(InputError, match=r"records: No space left on device, the train records could not be written"):
        write_dataset(photos, "corel5k", tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate", r"damaged records:\n.*array_record-00000-of-00001: 70,000 bytes, expected 131,072 bytes"),
        ("remove", r"damaged records:\n.*array_record-00000-of-00001: absent, expected 131,072 bytes"),
        ("no manifest", r"damaged records:\n.*whole\.json: absent or broken"),
        ("no records", r"needs records of the train split, but .*train-\w+ does not exist; `aia prepare corel5k"),
    ],
)
def test_absent_and_damaged_records_are_refused_when_they_are_opened(own_records, damage, message):
    shard = next(own_records.rglob("*-train.array_record-*"))
    folder = own_records / "Corel-5k" / "records"
    if damage == "truncate":
        os.truncate(shard, 70_000)
    elif damage == "remove":
        shard.unlink()
    elif damage == "no manifest":
        next(folder.glob("train-*/whole.json")).unlink()
    else:
        shutil.rmtree(folder)
    with pytest.raises(InputError, match=message):
        load(own_records)


def test_changed_bytes_and_records_that_are_no_images_are_named_when_they_are_read(
    own_records, photos, tmp_path, monkeypatch
):
    shard = next(own_records.rglob("*-train.array_record-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:300] + bytes(200) + content[500:])
    with pytest.raises(InputError, match=r"record \d+ in .*train-\w+ cannot be read \(.*copy the folder again"):
        list(eval_batches({"image": load(own_records).images}, NUM_IMAGES, batch_size=8))
    from aia_jax.data.annotation import tfds_builders

    root = Path(shutil.copytree(photos, tmp_path / "root"))
    (root / "Corel-5k" / "images" / "3.jpeg").write_bytes(b"<html>")
    monkeypatch.setattr(tfds_builders, "decode_image", lambda *_: None)
    write_dataset(root, "corel5k", tmp_path / "unchecked")
    with pytest.raises(InputError, match=r"record 3 in .*train-\w+, 3\.jpeg: a web page, not an image"):
        _ = load(tmp_path / "unchecked").images[2:5]


def test_data_without_photos_and_cached_features_are_refused(records):
    with pytest.raises(InputError, match="placement='stream' reads photos, but scenes are generated; set"):
        load(records, name="scenes", num_train=4, num_test=2, seed=0)
    config = stream_config(records, "stream")
    config.model.freeze_backbone = True
    task = FrozenBackboneTask(config)
    with pytest.raises(InputError, match=r"placement='stream' has no prepared images, .*placement='host'"):
        task.prepare({"constants": {"backbone": {}}}, ["train"])


def test_the_missing_extra_is_named(records, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for call in (lambda: load(records), lambda: write_dataset(photos, "corel5k", tmp_path)):
        with pytest.raises(InputError, match=r"records of photos .* needs more packages .*pip install"):
            call()


def test_prepare_writes_records_of_own_photos_to_a_folder_or_a_bucket_from_which_training_reads(
    tmp_path,
    storage,  # noqa: F811
    capsys,
):
    root, stats = tmp_path / "custom", {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    for split in ("train", "test"):
        samples = [{"image_name": f"a b/{split}.jpg", "image_labels": ["sky"]}]
        path = make_photo(root / "images" / "a b" / f"{split}.jpg")
        Image.open(path).save(path, exif=TURNED)
        (root / f"{split}.json").write_text(json.dumps({"labels": LABELS, "samples": samples}))
    (root / "channel_stats.json").write_text(json.dumps(stats))
    expected = load(root, placement="host", name="custom").images[:]
    for output in (str(tmp_path / "out"), "gs://bucket/custom"):
        assert main(["prepare", "custom", "--root", str(root), "--output", output]) == 0
        shown = f"train: 1 records\ntest: 1 records\n--config.data.root={output} --config.data.placement=stream\n"
        assert capsys.readouterr().out == shown
        flags = [f"--config.data.root={output}", "--config.data.placement=stream", "--config.data.image_size=16"]
        task = make_task(read_config("custom", flags))
        assert read_channel_stats(task.config.data.root) == ((0.5,) * 3, (0.2,) * 3)
        np.testing.assert_array_equal(task.split("test").images, expected)
    sent = [path for path in storage.moved("put") if "records" not in path]
    assert sorted(sent) == [f"bucket/custom/{name}.json" for name in ("channel_stats", "test", "train")]
    assert not list((tmp_path / "cloud").rglob("*.lock"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["corel5k", "--check", "--output", "out"], "--check writes nothing, but --output does"),
        (["custom", "--root", "."], "the data set custom is not downloaded; give --output"),
        (["custom", "--root", ".", "--output", "file"], "--output file is a file"),
        (["custom", "--root", ".", "--output", "gs://"], "'gs://' names no bucket; give gs://BUCKET/FOLDER"),
        (["custom", "--root", ".", "--output", "hdfs://x/y"], "not a path of this machine"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["prepare", *flags]) == 2
    assert message in capsys.readouterr().err
