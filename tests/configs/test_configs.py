import json
from pathlib import Path

import pytest

from aia_jax.utils.config import flatten, read_config
from configs import corel5k, custom, demo, vg500

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_the_published_recipe_is_the_default():
    config = vg500.get_config()
    assert config.to_dict() == vg500.get_config("published").to_dict()
    assert (config.batch_size, config.ema_decay, config.optimizer.max_learning_rate) == (128, 0.999, 1e-4)
    assert (config.optimizer.name, config.accumulate_steps, config.mesh.fsdp) == ("adam", 1, 1)


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


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match=r"configs/vg500.py:huge is unknown; known: published, large"):
        vg500.get_config("huge")


def test_a_run_of_an_earlier_version_may_be_trained_further(tmp_path):
    written = demo.get_config().to_dict()
    written["model"]["gate_kernels"] = False
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = custom.get_config(str(tmp_path))
    assert (config.model.backbone, config.model.hidden_size, config.data.image_size) == ("tresnet_tiny", 128, 96)
    assert (config.batch_size, config.epochs, config.loss.name, config.init_from) == (16, 14, "bce", str(tmp_path))
    assert flatten(config.to_dict()).keys() == flatten(corel5k.get_config().to_dict()).keys()
