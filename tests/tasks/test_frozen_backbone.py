"""Training of the head alone: cached features equal those of the annotator, and the head trains on them."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from aia_jax.cli.train import train
from aia_jax.data.feature_cache import cast_features
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.tasks.registry import make_task
from aia_jax.training.model_arrays import merge_model, split_model
from aia_jax.training.runs import run_arrays
from aia_jax.utils.errors import InputError
from tests.helpers.untrained import annotator_config, write_run


def frozen_config(**overrides):
    """A very small annotator with a frozen backbone."""
    fields = {"epochs": 2, "batch_size": 16, "eval.batch_size": 16, "model.freeze_backbone": True, "model.num_heads": 2}
    fields |= {"data.num_train": 64, "data.num_test": 21, "data.validation_fraction": 0.25, "data.flips": "horizontal"}
    return annotator_config(**fields | overrides)


@pytest.fixture(scope="module")
def converted(tmp_path_factory, cache_dir):
    """A run with the backbone that the other runs freeze."""
    return write_run(tmp_path_factory.mktemp("whole"), frozen_config(**{"model.freeze_backbone": False}))


@pytest.fixture(scope="module")
def config(converted):
    return frozen_config(init_backbone=str(converted))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("frozen")
    train(config, path)
    return path


def prepared_task(**overrides):
    task = make_task(frozen_config(**overrides))
    graphdef, weights = split_model(task.build_model(nnx.Rngs(0)))
    task.prepare(weights, ())
    return task, merge_model(graphdef, weights)


def test_scores_equal_those_of_the_annotator():
    task, model = prepared_task(**{"data.feature_dtype": "float32"})
    batch = next(task.eval_batches("test"))
    assert set(batch) == {"features", "index", "mask"}
    scores = task.predict(model, batch)["scores"]
    images = np.asarray(task.split("test").images[batch["index"]])
    expected = task.explain(model, {"image": images})["scores"]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("flips", "forms"), [("none", ""), ("horizontal", "_h"), ("both", "_h _hv _v")])
def test_features_of_flipped_images_are_cached(flips, forms):
    task, model = prepared_task(**{"data.flips": flips, "data.feature_dtype": "float32"})
    arrays, names = task.train_arrays(), ["features", *(f"features{form}" for form in forms.split())]
    assert sorted(arrays) == [*names, "target"]
    rows = np.array([3, 7])
    images = np.asarray(task.split("train").images[rows])
    for name in names:
        form = name.partition("_")[2]
        flipped = images[:, :, ::-1] if "h" in form else images
        flipped = flipped[:, ::-1] if "v" in form else flipped
        expected, _ = model.backbone(task.normalize(flipped), train=False)
        np.testing.assert_allclose(arrays[name][rows], expected, rtol=1e-4, atol=1e-5)


def test_training_samples_all_versions_of_an_image():
    task, model = prepared_task()
    seen, head = [], model.head

    def record(features, **_):
        seen.append(np.asarray(features)[:, 0, 0, 0])
        return head(features, train=False)

    model.head = record
    batch = {"features": np.zeros((64, 2, 2, 3)), "features_h": np.ones((64, 2, 2, 3)), "target": np.zeros((64, 22))}
    with pytest.raises(TypeError):  # the head refuses these shapes, but its input is recorded
        task.loss(model, {name: jax.numpy.asarray(value) for name, value in batch.items()}, jax.random.key(0))
    assert 16 < seen[0].sum() < 48


def test_only_the_head_changes(workdir, converted):
    (before, _), (after, _) = map(run_arrays, (converted, workdir))
    assert before.keys() == after.keys()
    for name, value in after.items():
        if name.startswith("backbone."):
            np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert not np.array_equal(after["head.weight"], before["head.weight"])


def test_a_run_is_evaluated_on_the_cached_features(workdir, tmp_path, config, monkeypatch):
    monkeypatch.setattr("aia_jax.data.feature_cache.pad_batch", lambda *_: pytest.fail("computed again"))
    evaluate(config, workdir, tmp_path, thresholds="mcc")
    names = "attention.png curves.png metrics.json per_label.csv predictions.png scores.npz thresholds.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == names.split()
    assert len(json.loads((tmp_path / "thresholds.json").read_text())) == 22


def test_device_placement_gives_the_same(workdir, tmp_path, converted):
    train(frozen_config(**{"init_backbone": str(converted), "data.placement": "device"}), tmp_path)
    scores = [np.load(path / "evaluation" / "scores.npz")["scores"] for path in (workdir, tmp_path)]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, r"config\.model\.freeze_backbone needs a backbone: give config\.init_backbone"),
        ({"mixup": True}, r"config\.mixup mixes images"),
        ({"data.flips": "vertical"}, r"config\.data\.flips='vertical' is unknown; known: none, horizontal, both"),
        ({"init_from": "a", "init_backbone": "b"}, "give one of them; --config.init_backbone= keeps the whole model"),
        ({"init_from": "opn"}, "opn does not exist; name the folder of a model .* nearest: open"),
        (
            {"init_from": "open", "init_labels": "by_name"},
            "open is a model without labels; name an annotator",
        ),
    ],
)
def test_bad_fields_are_refused(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        train(frozen_config(**overrides), tmp_path)


def test_features_that_half_precision_cannot_hold_are_refused():
    with pytest.raises(InputError, match="features of up to 70000 do not fit into float16"):
        cast_features(np.full((1, 2), 7e4, np.float32), "float16")
