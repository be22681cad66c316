"""Initialisation from a model of other labels: common labels keep their weights, new labels stay random."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aia_jax.data import scenes
from aia_jax.models import backbones
from aia_jax.models.tresnet import TResNet
from aia_jax.tasks.registry import make_task
from aia_jax.training.model_arrays import flat_arrays
from aia_jax.training.runs import run_arrays
from aia_jax.utils.errors import InputError
from aia_jax.weights.initialization import initializer
from aia_jax.weights.torch_archive import write_archive
from tests.helpers.small_annotator import VARIANT
from tests.helpers.torch_state_files import builder, signed_state, wrapped
from tests.helpers.untrained import annotator_config, random_weights, write_run

HEAD = {"hidden_size": 16, "num_heads": 4, "feedforward_size": 16}
KNOWN = ("night", "red", "circle")
LABELS = ("zebra", "night", "Red", "red", "aardvark", "circle")
LABEL_ARRAYS = {
    "attention": {"head.query_embedding": 0, "head.weight": 0, "head.bias": 0},
    "gap": {"head.linear.kernel": 1, "head.linear.bias": 0},
}


def other_task(config):
    """A task of `config` with other labels; its images are not read."""
    task = make_task(config)
    task._vocabulary, task.epoch_end = LABELS, lambda epoch: epoch
    return task


@pytest.fixture(scope="module", params=["attention", "gap"])
def source(request, tmp_path_factory, cache_dir):
    """A run on the scenes' 22 labels, and its head."""
    config = annotator_config(**{"model.head": request.param, "seed": 5})
    workdir = tmp_path_factory.mktemp("runs") / request.param
    return write_run(workdir, config, random_weights(make_task(config), 0)), request.param


def random_and_initialized(config):
    """Weights by path: random ones, and the same after initialisation from `config.init_from`."""
    task = other_task(config)
    initialize = initializer(config, task)
    weights = jax.tree.map(jnp.asarray, random_weights(task, 1))
    return flat_arrays(weights), flat_arrays(initialize(weights))


def test_common_labels_keep_their_weights_and_new_labels_stay_random(source, capsys):
    workdir, head = source
    config = annotator_config(**{"model.head": head, "init_from": str(workdir), "init_labels": "by_name"})
    given, _ = run_arrays(workdir)
    random, weights = random_and_initialized(config)
    assert f"3 of 6 labels known to {workdir}: night, red, circle; 3 new: zebra, Red, aardvark\n" in (
        capsys.readouterr().out
    )
    for path, axis in LABEL_ARRAYS[head].items():
        found, fresh, theirs = (np.moveaxis(np.asarray(arrays[path]), axis, 0) for arrays in (weights, random, given))
        for row, label in enumerate(LABELS):
            expected = theirs[scenes.LABELS.index(label)] if label in KNOWN else fresh[row]
            np.testing.assert_array_equal(found[row], expected, err_msg=f"{path} {label}")
    for path in given.keys() - LABEL_ARRAYS[head].keys():
        np.testing.assert_array_equal(weights[path], given[path], err_msg=path)


def test_unusable_values_and_sources_are_refused(source, tmp_path):
    workdir, head = source
    config = annotator_config(**{"model.head": head, "init_from": str(workdir)})
    with pytest.raises(InputError, match=r"trained on other labels.*\(22 there, 6 here\)"):
        initializer(config, other_task(config))
    config.init_labels = "byname"
    with pytest.raises(InputError, match=r"config\.init_labels='byname' is unknown; known: strict, by_name, or a file"):
        initializer(config, other_task(config))
    (tmp_path / "labels.txt").write_text("night\nred\n")
    config.init_labels = str(tmp_path / "labels.txt")
    with pytest.raises(InputError, match=r"trained on other labels"):
        initializer(config, other_task(config))
    config.init_from, config.init_labels = str(tmp_path), "by_name"
    with pytest.raises(InputError, match=r"holds no checkpoints"):
        initializer(config, other_task(config))
    other = "gap" if head == "attention" else "attention"
    config = annotator_config(**{"model.head": other, "init_from": str(workdir), "init_labels": "by_name"})
    with pytest.raises(InputError, match=r"do not fit this config|holds another model than this config"):
        initializer(config, other_task(config))


@pytest.fixture
def file_of_scenes(tmp_path, monkeypatch):
    """A PyTorch annotator of the scenes' labels: its path, its arrays by its own names, and a config for it."""
    entry = backbones.Backbone(partial(TResNet, VARIANT), "tresnet", None, 4)
    monkeypatch.setitem(backbones.BACKBONES, "tresnet_small", entry)
    content = wrapped(signed_state(builder("annotator", VARIANT, len(scenes.LABELS), **HEAD)), "timm >= 0.9")
    write_archive(tmp_path / "annotator.pth", content)
    return tmp_path / "annotator.pth", content, annotator_config(**{"model.backbone": "tresnet_small"})


def test_a_list_gives_the_labels_of_a_file(file_of_scenes, tmp_path, capsys):
    path, state, config = file_of_scenes
    (tmp_path / "train.json").write_text(json.dumps({"labels": list(scenes.LABELS)}))
    config.update({"init_from": str(path), "init_labels": str(tmp_path / "train.json")})
    _, weights = random_and_initialized(config)
    assert "3 of 6 labels known" in capsys.readouterr().out
    row = scenes.LABELS.index("red")
    np.testing.assert_array_equal(weights["head.query_embedding"][3], state["head.query_emb.weight"][row])
    np.testing.assert_array_equal(weights["head.weight"][3], state["head.w"][0, row])
    (tmp_path / "train.json").write_text(json.dumps({"labels": list(scenes.LABELS[1:])}))
    with pytest.raises(InputError, match=r"scores 22 labels, but config\.init_labels=.*train\.json lists 21"):
        initializer(config, other_task(config))


def test_without_a_list_the_weights_of_all_labels_stay_random(file_of_scenes, capsys):
    path, state, config = file_of_scenes
    config.update({"init_from": str(path), "init_labels": "by_name"})
    random, weights = random_and_initialized(config)
    assert (
        "does not list its labels: the queries and scores of all 6 labels start from random weights"
        in capsys.readouterr().out
    )
    for name in LABEL_ARRAYS["attention"]:
        np.testing.assert_array_equal(weights[name], random[name])
    np.testing.assert_array_equal(
        weights["head.layers.0.linear1.bias"], state["head.transformer.decoder.layers.0.linear1.bias"]
    )
    config.init_labels = "strict"
    with pytest.raises(InputError, match=r"scores 22 labels, but .* list 6; .*init_labels=by_name"):
        initializer(config, other_task(config))
