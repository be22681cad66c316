"""`eval.py --html`: the page and the table of labels show the measured numbers."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import ExifTags, Image

from aia_jax.cli.train import train
from aia_jax.configs import demo, demo_retrieval, demo_search
from aia_jax.evaluation.annotation_page import _picture, page_labels
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.report.gallery.writer import OUTCOMES
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.tasks.registry import make_task
from aia_jax.utils.errors import InputError
from tests.helpers.gallery_page import read_page
from tests.helpers.untrained import annotator_config, write_run

THRESHOLD = 0.5


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The output folder of a run with random weights, and its config."""
    config = annotator_config(**{"eval.threshold": THRESHOLD, "eval.batch_size": 8, "data.num_test": 12})
    workdir = write_run(tmp_path_factory.mktemp("runs") / "annotator", config)
    evaluate(config, workdir, workdir / "evaluation", html=True)
    return workdir / "evaluation", config


def read_table(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [row.pop("label") for row in rows]
    return labels, {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def test_the_table_of_labels_has_the_reported_means(evaluated):
    output, config = evaluated
    metrics = json.loads((output / "metrics.json").read_text())
    labels, columns = read_table(output / "per_label.csv")
    assert labels == list(make_task(config).labels)
    means = [np.mean(columns["precision"]), np.mean(columns["recall"]), 100 * np.mean(columns["ap"])]
    assert means == [metrics["precision"], metrics["recall"], metrics["map"]]
    assert np.count_nonzero(columns["tp"]) == metrics["n_plus"] > 0
    assert set(columns["threshold"]) == {THRESHOLD}
    assert not (output / "curves.png").exists()  # the run was not trained here


def test_the_page_shows_true_and_predicted_labels(evaluated):
    output, _ = evaluated
    facts, photos = read_page(output / "report.html")
    scores = np.load(output / "scores.npz")
    assert list(photos) == scores["image_names"].tolist()
    assert facts["title"] == "scenes, test split: best epoch (1, raw)"
    for row, photo in enumerate(photos.values()):
        predicted, true = scores["scores"][row] > THRESHOLD, scores["targets"][row] > 0
        kinds = predicted & true, true & ~predicted, predicted & ~true
        outcomes = {facts["labels"][label]: kind for kind in range(3) for label in np.flatnonzero(kinds[kind])}
        assert photo["outcomes"] == outcomes
        assert photo["maps"].keys() == outcomes.keys()
        assert photo["picture"].shape == (32, 32, 3)
    assert {outcome for photo in photos.values() for outcome in photo["outcomes"].values()} == {0, 1, 2}


def test_the_page_shows_the_metrics_of_the_labels(evaluated):
    output, _ = evaluated
    facts, _ = read_page(output / "report.html")
    metrics = json.loads((output / "metrics.json").read_text())
    evaluation = facts["evaluation"]
    assert {name: metrics[name] for name in evaluation["metrics"]} == evaluation["metrics"]
    _, columns = read_table(output / "per_label.csv")
    for name, column in columns.items():
        assert [row[name] for row in evaluation["per_label"]] == column.tolist()
    assert [len(curve) for curve in evaluation["curves"]["labels"]] == columns["support"].tolist()
    missed, confusions = columns["support"] - columns["tp"], evaluation["confusions"]
    assert confusions["missed"] == missed.tolist()
    assert confusions["pairs"] == sorted(confusions["pairs"], key=lambda pair: -pair[2])
    assert all(0 < number <= missed[label] for label, _, number in confusions["pairs"])


def test_the_page_uses_the_thresholds_of_the_labels(evaluated, tmp_path):
    output, config = evaluated
    evaluate(config, output.parent, tmp_path, thresholds="exact", html=True)
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    thresholds = json.loads((tmp_path / "thresholds.json").read_text())
    labels, columns = read_table(tmp_path / "per_label.csv")
    assert dict(zip(labels, columns["threshold"], strict=True)) == thresholds
    (at_thresholds,) = [row for row in rows if row["threshold"] == "per label"]
    assert np.mean(columns["recall"]) == at_thresholds["recall"]
    facts, _ = read_page(tmp_path / "report.html")
    assert facts["evaluation"]["metrics"]["recall"] == at_thresholds["recall"]
    assert "above the label's threshold" in facts["subtitle"]


def test_labels_without_a_photo_are_left_out_of_the_means_of_the_page_and_the_terminal(tmp_path, capsys):
    config = annotator_config(**{"eval.threshold": THRESHOLD, "eval.batch_size": 8, "data.num_test": 2})
    workdir = write_run(tmp_path / "run", config)
    metrics = evaluate(config, workdir, tmp_path, html=True)
    _, columns = read_table(tmp_path / "per_label.csv")
    tested = columns["support"] > 0
    means = {"precision": columns["precision"][tested].mean(), "map": 100 * columns["ap"][tested].mean()}
    shown = read_page(tmp_path / "report.html")[0]["evaluation"]
    assert {name: shown["with_photos"][name] for name in means} == pytest.approx(means)
    assert shown["with_photos"]["num_labels"] == tested.sum() < len(tested)
    assert metrics["precision"] == shown["metrics"]["precision"] == columns["precision"].mean()  # as published
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if f"without {np.sum(~tested)} labels that no photo here" in line]
    assert line.split()[-1] == f"{means['map']:.2f}"
    assert "report.html: 2 photos, about " in printed


def test_a_split_without_labels_is_refused_before_training_and_evaluation(evaluated, tmp_path, monkeypatch):
    output, config = evaluated
    read = AnnotationTask.split
    monkeypatch.setattr(
        AnnotationTask,
        "split",
        lambda task, name: dataclasses.replace(read(task, name), targets=np.zeros_like(read(task, name).targets)),
    )
    trained = config.copy_and_resolve_references()
    trained.data.num_train = 64
    for work in (lambda: evaluate(config, output.parent, tmp_path), lambda: train(trained, tmp_path / "run")):
        with pytest.raises(InputError, match=r"no photo of the .* split has a label: nothing can be measured"):
            work()
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(("name", "shape"), [("custom", (20, 40, 3)), ("corel5k", (40, 20, 3))])
def test_pictures_are_turned_as_for_the_network(name, shape, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (20, 40)).save(tmp_path / "turned.jpg", exif=exif)
    found = _picture(tmp_path / "turned.jpg", np.zeros((8, 8, 3), np.uint8), upright=name == "custom")
    assert np.asarray(Image.open(io.BytesIO(found))).shape == shape


def test_hits_come_first_then_misses_then_false_alarms():
    found = page_labels(np.array([0.9, 0.1, 0.6, 0.95, 0.2], np.float32), np.array([1, 1, 0, 1, 0]), 0.5)
    assert [(label, outcome) for label, _, outcome in found] == [(3, "hit"), (0, "hit"), (1, "miss"), (2, "false")]
    assert OUTCOMES == ("hit", "miss", "false")


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        (demo_retrieval, {"html": True}, "--html is an option of annotation; retrieval has no page of labels"),
        (demo_retrieval, {"thresholds": "mcc"}, "--thresholds is an option of annotation; retrieval ranks"),
        (demo_search, {"html": True}, "--html is an option of annotation; image search has no page of labels"),
        (demo_search, {"thresholds": "mcc"}, "--thresholds is an option of annotation; image search ranks"),
        (demo_search, {"weights": ["a", "b"]}, "an ensemble, which image search does not support; give one"),
        (demo, {"weights": ["a", "b"]}, "an ensemble, which annotation does not support; give one"),
        (demo, {"thresholds": "none"}, "thresholds 'none': no such file; known: mcc, exact, or a file's path"),
    ],
)
def test_options_that_a_system_does_not_support_are_refused(system, options, message, tmp_path):
    config = system.get_config()
    config.eval.batch_size = 8
    with pytest.raises(InputError, match=message):
        evaluate(config, tmp_path, tmp_path / "out", **options)
