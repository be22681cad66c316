"""A run on a user's own photos and labels: started from a run of other labels, continued, evaluated, used."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import aia_jax
from aia_jax.cli.main import main
from aia_jax.cli.train import train
from aia_jax.configs import custom
from aia_jax.data import scenes
from aia_jax.data.annotation.annotations import read_annotations
from aia_jax.data.annotation.channel_stats import read_channel_stats
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.models import backbones
from aia_jax.models.tresnet import TResNet, Variant
from aia_jax.tasks.registry import make_task
from aia_jax.training.model_arrays import flat_arrays
from aia_jax.training.runs import run_arrays
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError
from aia_jax.weights.initialization import initializer
from tests.helpers.untrained import annotator_config, random_weights, write_run

NUM_PHOTOS = 60
RENAMED = {label: label.upper() for label in scenes.LABELS[::2]}


def import_scenes(folder, first, output, *flags):
    """Imports synthetic scenes, half of whose labels have other names."""
    folder.mkdir()
    lines = ["image,labels"]
    for number in range(first, first + NUM_PHOTOS):
        scene = scenes.draw(3, number, 32)
        Image.fromarray(scene.image).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'|'.join(RENAMED.get(label, label) for label in scene.labels)}")
    (folder / "labels.csv").write_text("\n".join(lines))
    assert main(["import-labels", "--labels", str(folder / "labels.csv"), "--output", str(output), *flags]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache_dir):
    """Holds the imported data `mine`, the run `source` on the scenes, and the run `run` that started from it."""
    folder = tmp_path_factory.mktemp("custom")
    import_scenes(folder / "photos", 0, folder / "mine")
    source = annotator_config(**{"eval.batch_size": 16, "model.backbone": "tresnet_block"})
    variant = Variant(blocks=(1,), width=8, basic_stages=1)  # compiles in a moment
    with pytest.MonkeyPatch.context() as patch:
        entry = backbones.Backbone(partial(TResNet, variant), "tresnet", None, 4)
        patch.setitem(backbones.BACKBONES, "tresnet_block", entry)
        write_run(folder / "source", source, random_weights(make_task(source), 0))
        train(config_of(folder), folder / "run")
        yield folder


def config_of(folder, **overrides):
    """As `configs/custom.py:RUN` for a CPU: the head alone."""
    config = custom.get_config(str(folder / "source"))
    config.update({"epochs": 3, "batch_size": 8})
    config.data.update({"root": str(folder / "mine"), "num_workers": 0, "flips": "none"})
    config.data.feature_dtype = "float32"  # evaluation then gives the scores of the whole network to 1e-5
    config.model.freeze_backbone = True
    config.eval.batch_size = 16
    config.update_from_flattened_dict(overrides)
    return config


def test_it_takes_over_the_network_and_trains_on_the_new_labels(folder, tmp_path, capsys):
    config = config_of(folder)
    assert (config.model.hidden_size, config.data.image_size, config.loss.name) == (16, 32, "bce")
    task = make_task(config)
    assert task.channel_stats == read_channel_stats(folder / "mine")
    trainer = Trainer(config, task, tmp_path, initialize=initializer(config, task))
    assert "11 of 21 labels known to" in capsys.readouterr().out
    state = trainer._first_state(SimpleNamespace(steps=list))[0]
    given, _ = run_arrays(folder / "source")
    row, theirs = task.labels.index("red"), scenes.LABELS.index("red")
    for name in ("raw", "ema"):
        weights = flat_arrays(state.weights(name))
        for path in ("head.query_embedding", "head.weight"):
            np.testing.assert_array_equal(weights[path][row], given[path][theirs])
    assert int(state.step) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    after, info = run_arrays(folder / "run")
    assert info["labels"] == list(task.labels)
    assert not np.array_equal(after["head.weight"][row], given["head.weight"][theirs])
    np.testing.assert_array_equal(after["head.query_embedding"][row], given["head.query_embedding"][theirs])  # frozen


def test_balance_is_printed_and_a_trained_run_needs_no_source(folder, tmp_path, capsys):
    config = config_of(folder)
    shutil.copytree(folder / "run", tmp_path / "run")
    steps = sorted((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(steps[-1])
    source = folder / "source"
    source.rename(tmp_path / "gone")
    try:
        train(config, tmp_path / "run")
    finally:
        (tmp_path / "gone").rename(source)
    printed = capsys.readouterr().out
    assert printed.count(" for validation; 21 labels, ") == 1
    assert "labels have fewer than 10 training photos: " in printed
    assert f"at step {steps[-2].name} of" in printed
    runs = [folder / "run", tmp_path / "run"]
    scores = [np.load(run / "evaluation" / "scores.npz")["scores"] for run in runs]
    np.testing.assert_array_equal(*scores)
    weights = [run_arrays(run)[0] for run in runs]
    for path in weights[0]:
        np.testing.assert_array_equal(weights[0][path], weights[1][path], err_msg=path)


def test_it_annotates_when_photos_and_annotations_are_gone(folder, tmp_path):
    test = read_annotations(folder / "mine", "custom", "test")
    (tmp_path / "new").mkdir()
    for name, path in zip(test.image_names, test.image_paths, strict=True):
        shutil.copy(path, tmp_path / "new" / name)
    expected = dict(zip(test.image_names, np.load(folder / "run" / "evaluation" / "scores.npz")["scores"], strict=True))
    (folder / "mine").rename(tmp_path / "gone")
    try:
        flags = ["--workdir", str(folder / "run"), "--images", str(tmp_path / "new"), "--threshold", "0"]
        assert main(["annotate", *flags, "--output", str(tmp_path / "out"), "--batch_size", "16"]) == 0
        loaded = aia_jax.load(folder / "run", threshold=0)
    finally:
        (tmp_path / "gone").rename(folder / "mine")
    lines = [json.loads(line) for line in (tmp_path / "out" / "annotations.jsonl").read_text().splitlines()]
    assert len(lines) == len(test)
    for line in lines:
        scores = {label["label"]: label["score"] for label in line["labels"]}
        assert set(scores) == set(test.labels)
        found = [scores[label] for label in test.labels]
        np.testing.assert_allclose(found, expected[line["image"]], rtol=0, atol=1e-5)
    found = loaded([tmp_path / "new" / test.image_names[0]]).scores[0]
    np.testing.assert_allclose(found, expected[test.image_names[0]], rtol=0, atol=1e-5)


def test_other_photos_are_evaluated_by_the_statistics_of_training(folder, tmp_path):
    import_scenes(tmp_path / "others", 100, tmp_path / "own", "--test_fraction", "1")
    flags = ["--labels", str(tmp_path / "others" / "labels.csv"), "--test_fraction", "1", "--skip_bad"]
    assert main(["import-labels", *flags, "--output", str(tmp_path / "like"), "--like", str(folder / "mine")]) == 0
    config = config_of(folder, **{"data.root": str(tmp_path / "like")})
    assert evaluate(config, folder / "run", tmp_path / "out")["num_images"] == NUM_PHOTOS
    config.data.root = str(tmp_path / "own")
    with pytest.raises(InputError, match=r"trained on (photos of other channel statistics|other labels)"):
        evaluate(config, folder / "run", tmp_path / "out2")
    shutil.copy(tmp_path / "like" / "test.json", tmp_path / "own" / "test.json")
    with pytest.raises(InputError, match=r"of other channel statistics .* aia import-labels --like takes over"):
        evaluate(config, folder / "run", tmp_path / "out2")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 40}, "=40 is larger than the training data, at most 37; set a smaller one, a multiple of 8"),
        ({"data.root": "nowhere"}, "nowhere/channel_stats.json does not exist; config.data.root must be the folder"),
    ],
)
def test_misfits_are_reported_before_training(folder, tmp_path, overrides, message):
    with pytest.raises(InputError) as caught:
        train(config_of(folder, **overrides), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_batch_of_too_many_photos_is_refused_before_photos_are_resized(folder, tmp_path):
    config = config_of(folder, **{"batch_size": 64, "data.cache_dir": str(tmp_path / "cache")})
    with pytest.raises(InputError, match="larger than the training data, at most 48"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "content", ["{}", "[]", "{", '{"mean": [0, 0], "std": [1, 1, 1]}', '{"mean": [0, 0, 0], "std": [1, 1, 0]}']
)
def test_damaged_statistics_are_reported(tmp_path, content):
    (tmp_path / "channel_stats.json").write_text(content)
    with pytest.raises(InputError, match=r"channel_stats\.json(: field '(mean|std)' must be three| is not JSON)"):
        read_channel_stats(tmp_path)
