"""A run trained by commit 4bae2d0 evaluates, annotates and exports as it did then, and is not continued."""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aia_jax
from aia_jax.cli.main import main
from aia_jax.cli.train import train
from aia_jax.configs import demo
from aia_jax.data import scenes
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.inference.export import load_stablehlo
from aia_jax.utils.errors import InputError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_4bae2d0"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
OVERRIDES = {
    "epochs": 10,
    "batch_size": 8,
    "data.image_size": 32,
    "data.num_train": 80,
    "data.num_test": 16,
    "model.hidden_size": 8,
    "model.num_heads": 1,
    "model.feedforward_size": 8,
    "model.freeze_backbone": True,
    "checkpoint.keep": 1,
    "eval.batch_size": 16,
    "optimizer.max_learning_rate": 0.02,
    "init_backbone": "backbone.safetensors",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(FIXTURE / "run.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


@pytest.fixture(scope="module")
def config():
    config = demo.get_config()
    config.update_from_flattened_dict(OVERRIDES)
    return config


@pytest.fixture(scope="module")
def images():
    return np.stack([scenes.draw(11, index, 32).image for index in range(4)])


def test_evaluation_gives_the_same_metrics_and_scores(run, config, tmp_path):
    evaluate(config, run, tmp_path)
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    for row, expected in zip(rows, EXPECTED["metrics"], strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    scores = np.load(tmp_path / "scores.npz", allow_pickle=False)["scores"]
    np.testing.assert_allclose(scores, EXPECTED["scores"], rtol=0, atol=1e-6)


def test_annotation_gives_the_same_labels(run, images, tmp_path):
    (tmp_path / "photos").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photos" / f"{index}.png")
    paths = ["--images", str(tmp_path / "photos"), "--output", str(tmp_path / "out")]
    assert main(["annotate", "--workdir", str(run), *paths, "--threshold", "0.2", "--top", "3"]) == 0
    found = [json.loads(line) for line in (tmp_path / "out" / "annotations.jsonl").read_text().splitlines()]
    assert [photo["image"] for photo in found] == [photo["image"] for photo in EXPECTED["annotations"]]
    for photo, wanted in zip(found, EXPECTED["annotations"], strict=True):
        assert [label["label"] for label in photo["labels"]] == [label["label"] for label in wanted["labels"]]
        scores = [label["score"] for label in photo["labels"]]
        assert scores == pytest.approx([label["score"] for label in wanted["labels"]], abs=1e-6)
    np.testing.assert_allclose(aia_jax.load(run)(images).scores, EXPECTED["loaded_scores"], rtol=0, atol=1e-6)


def test_export_gives_the_same_scores(run, images, tmp_path):
    assert main(["export", "--workdir", str(run), "--output", str(tmp_path)]) == 0
    exported = load_stablehlo((tmp_path / "model.stablehlo").read_bytes())
    np.testing.assert_allclose(exported(images)["scores"], EXPECTED["exported_scores"], rtol=0, atol=1e-6)


def test_its_training_is_refused_and_its_weights_start_a_new_run(run, config, tmp_path):
    refusal = r"saved by another version of aia_jax.*start a new run, in another workdir, with --config.init_from=(\S+)"
    with pytest.raises(InputError, match=refusal) as caught:
        train(config, run)
    source = re.search(refusal, str(caught.value))[1]
    config.update_from_flattened_dict({"init_backbone": "", "init_from": source, "epochs": 2})
    train(config, tmp_path)
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["rows"]
