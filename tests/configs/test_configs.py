import json
from pathlib import Path

import pytest

from aia_jax.configs import corel5k, custom, demo, espgame, iaprtc12, improved_loss, vg500
from aia_jax.utils.config import read_config
from aia_jax.utils.config_fields import flatten

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_the_published_recipe_is_the_default():
    config = vg500.get_config()
    assert config.to_dict() == vg500.get_config("published").to_dict()
    assert (config.batch_size, config.ema_decay, config.optimizer.max_learning_rate) == (128, 0.999, 1e-4)
    assert (config.optimizer.name, config.accumulate_steps, config.mesh.fsdp) == ("adam", 1, 1)
    assert (config.data.image_size, config.model.backbone, config.loss.gamma_neg) == (576, "tresnet_v2_l", 2.0)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (1024, 1e-4 * 8**0.5, 0.992)),
        (["--config.batch_size=4096"], (4096, 1e-4 * 32**0.5, 0.968)),
        (["--config.batch_size=128"], (128, 1e-4, 0.999)),
        (["--config.optimizer.max_learning_rate=0.01"], (1024, 0.01, 0.992)),
        (["--config.optimizer.max_learning_rate=0.01", "--config.batch_size=2048"], (2048, 0.01, 0.984)),
    ],
)
def test_the_large_recipe_follows_the_batch_size(overrides, expected):
    config = read_config(f"{CONFIGS}/vg500.py:large", overrides)
    assert (config.batch_size, config.optimizer.max_learning_rate, config.ema_decay) == pytest.approx(expected)
    assert isinstance(config.to_dict()["optimizer"]["max_learning_rate"], float)


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (vg500, "huge", "--config vg500:huge is unknown; known: published, large"),
        (improved_loss, "vg500", "known: corel5k, espgame, iaprtc12"),
        (custom, "open", "--config custom:open is a model for retrieval; name an annotator"),
        (custom, "gpa", "--config custom:gpa is unknown; known: gap, attention, text, whole, or the"),
    ],
)
def test_unknown_recipes_are_refused(config, name, message):
    with pytest.raises(ValueError, match=message):
        config.get_config(name)


def test_a_run_of_an_earlier_version_may_be_trained_further(tmp_path):
    written = demo.get_config().to_dict()
    written["model"]["gate_kernels"] = False
    written["loss"]["own_field"] = 3
    written |= {"batch_size": 16, "epochs": 14, "data": written["data"] | {"image_size": 96}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = custom.get_config(str(tmp_path))
    assert (config.model.backbone, config.model.hidden_size, config.data.image_size) == ("tresnet_tiny", 128, 96)
    assert (config.batch_size, config.epochs, config.loss.name, config.init_from) == (16, 14, "bce", str(tmp_path))
    fields = flatten(config.to_dict())
    assert fields.pop("loss.own_field") == 3
    assert fields.keys() == flatten(corel5k.get_config().to_dict()).keys()


@pytest.mark.parametrize("dataset", [corel5k, espgame, iaprtc12], ids=lambda module: module.__name__)
def test_published_configs_hold_the_published_values(dataset):
    name = dataset.__name__.removeprefix("aia_jax.configs.")
    config = dataset.get_config()
    assert (config.data.name, config.data.image_size, config.batch_size) == (name, 448, 32)
    assert (config.epochs, config.ema_decay, config.model.backbone) == (40, 0.99, "tresnet_m")
    config = improved_loss.get_config(name)
    assert (config.data.name, config.model.head, config.model.dropout, config.seed) == (name, "gap", 0.3, 1)
    assert config.published == f"improved_loss/{name}"


def test_configs_of_own_labels_name_their_start():
    config = custom.get_config()
    assert (config.data.name, config.model.head, config.init_backbone) == ("custom", "gap", "efficientnet_lite2")
    assert (config.model.freeze_backbone, config.eval.split, config.init_labels) == (True, "validation", "strict")
    assert custom.get_config("attention").model.head == "attention"
    assert custom.get_config("text").model.head == "text"
    config = custom.get_config("whole")
    assert (config.model.backbone, config.data.image_size, config.init_labels) == ("tresnet_m", 448, "by_name")
    assert not config.model.freeze_backbone
