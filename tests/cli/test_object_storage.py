"""Commands whose workdir, model or data are in object storage, here a fake one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import aia_jax
from aia_jax.cli import evaluate as evaluate_command
from aia_jax.cli import train as train_command
from aia_jax.cli.main import main
from aia_jax.data.annotation.annotations import read_annotations
from aia_jax.data.remote_data import with_local_data
from aia_jax.tasks.registry import make_task
from aia_jax.training.model_arrays import flat_arrays
from aia_jax.utils.config import read_config
from aia_jax.weights.initialization import initializer
from tests.helpers.photos import LABELS, make_dataset, make_photo
from tests.helpers.untrained import annotator_config, random_weights, write_config

URL = "gs://bucket/runs/a"


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    for command in (evaluate_command, train_command):
        monkeypatch.setattr(command, "set_up_devices", lambda arguments: None)


@pytest.fixture
def bucket(tmp_path, storage) -> Path:
    """The folder behind `gs://bucket`."""
    return tmp_path / "cloud" / "bucket"


@pytest.fixture
def run(annotator, bucket) -> Path:
    """The run at `URL`, a copy of `annotator`."""
    return shutil.copytree(annotator, bucket / "runs" / "a", ignore=shutil.ignore_patterns("evaluation", ".lock"))


def test_evaluate_writes_its_results_to_the_bucket(config, annotator, run, tmp_path, capsys):
    file = write_config(tmp_path / "config.py", config)
    local = ["evaluate", "--config", str(file), "--workdir", str(annotator), "--output", str(tmp_path / "local")]
    assert main(local) == 0
    assert main(["evaluate", "--config", str(file), "--workdir", URL, "--thresholds", "mcc"]) == 0
    expected, found = (
        json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "local", run / "evaluation")
    )
    assert {name: found[name] for name in expected if name != "rows"} == {
        name: value for name, value in expected.items() if name != "rows"
    }
    assert (run / "thresholds.json").exists()
    assert main(["evaluate", "--config", str(file), "--weights", URL]) == 2
    assert "--weights FILE needs --output" in capsys.readouterr().err


def test_a_run_and_a_model_folder_in_a_bucket_annotate_as_those_on_disk(annotator, run, bucket, tmp_path):
    photos = [make_photo(tmp_path / "photos" / f"{number}.jpg", number) for number in range(3)]
    flags = ["--images", str(tmp_path / "photos"), "--output"]
    assert main(["annotate", "--workdir", str(annotator), *flags, str(tmp_path / "a")]) == 0
    assert main(["annotate", "--workdir", URL, *flags, str(tmp_path / "b")]) == 0
    local, remote = ((tmp_path / name / "annotations.jsonl").read_bytes() for name in "ab")
    assert local == remote
    assert main(["package", "--workdir", URL, "--output", str(bucket / "model")]) == 0
    expected, found = aia_jax.load(bucket / "model")(photos), aia_jax.load("gs://bucket/model")(photos)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_a_run_in_a_bucket_initialises_training(annotator, run):
    def weights(source: str) -> dict[str, np.ndarray]:
        config = annotator_config(init_from=source)
        task = make_task(config)
        found = flat_arrays(initializer(config, task)(random_weights(task, 1)))
        assert config.init_from == source
        return found

    expected, found = weights(str(annotator)), weights(URL)
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)


def test_data_in_a_bucket_are_copied_once(bucket, storage):
    make_dataset(bucket / "datasets")
    config = read_config("corel5k", ["--config.data.root=gs://bucket/datasets"])
    local = with_local_data(config)
    assert config.data.root == "gs://bucket/datasets"
    assert read_annotations(local.data.root, "corel5k", "train").labels == tuple(LABELS)
    assert len(storage.moved("get")) == 6
    assert make_task(config).config.data.root == local.data.root
    assert storage.moved("get") == []
    other = read_config("corel5k", ["--config.data.root=datasets"])
    assert with_local_data(other) is other


@pytest.mark.slow
def test_training_in_a_bucket_gives_a_whole_run(bucket, tmp_path, capsys):
    fields = {"epochs": 2, "batch_size": 16, "data.num_train": 80, "data.num_test": 20, "data.validation_fraction": 0.2}
    file = write_config(tmp_path / "config.py", annotator_config(**fields))
    assert main(["train", "--config", str(file), "--workdir", URL]) == 0
    printed = capsys.readouterr().out
    assert f"--workdir {URL} --html" in printed
    assert f"--workdir {URL} --images PHOTOS --output annotated" in printed
    remote = bucket / "runs" / "a"
    assert {"command", "packages"} <= json.loads((remote / "environment.json").read_text()).keys()
    names = {"checkpoints", "config.json", "environment.json", "evaluation", "metrics.jsonl", "tensorboard"}
    assert {path.name for path in remote.iterdir()} == {".writer.json", *names}
    assert json.loads((remote / "evaluation" / "metrics.json").read_text())["num_images"] == 20
