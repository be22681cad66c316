import re

import pytest

from aia_jax.utils.config import apply_overrides
from aia_jax.utils.errors import InputError
from configs import demo, demo_retrieval


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("--config.batch_size=8", "batch_size", 8),
        ("--config.optimizer.clip_norm=2", "optimizer.clip_norm", 2.0),
        ("--config.optimizer.eps=1e-3", "optimizer.eps", 1e-3),
        ("--config.loss.gamma_neg=3", "loss.gamma_neg", 3.0),
        ("--config.mixup", "mixup", True),
        ("--config.mixup=True", "mixup", True),
        ("--config.mixup=false", "mixup", False),
        ("--noconfig.model.freeze_backbone", "model.freeze_backbone", False),
        ("--config.data.root=a=b", "data.root", "a=b"),
        ("--config.data.root=", "data.root", ""),
        ("--config.data.root=1", "data.root", "1"),
    ],
)
def test_values_take_the_type_of_their_field(argument, field, value):
    config = demo.get_config()
    earlier = ["--config.mixup=0", "--config.model.freeze_backbone", "--config.batch_size=4"]  # the last value counts
    apply_overrides(config, [*earlier, argument])
    for name in field.split("."):
        config = config[name]
    assert config == value
    assert type(config) is type(value)


@pytest.mark.parametrize("text", ["(8, 16)", "[8, 16]", "8,16"])
def test_tuples_are_set(text):
    config = demo_retrieval.get_config()
    apply_overrides(config, [f"--config.data.lengths={text}"])
    assert config.data.lengths == (8, 16)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.batch_size=many", "'--config.batch_size=many': must be a whole number"),
        ("--config.batch_size=1e3", "must be a whole number"),
        ("--config.batch_size=", "must be a whole number"),
        ("--config.batch_size=" + "9" * 5000, "must be a whole number"),
        ("--config.batch_size", "needs a value, as --config.field=value"),
        ("--noconfig.batch_size", "needs a value"),
        ("--noconfig.mixup=1", "'--noconfig.mixup=1': takes no value"),
        ("--config.ema_decay=high", "must be a number"),
        ("--config.mixup=maybe", "must be true or false"),
        ("--config.batch_sise=8", "no field --config.batch_sise; nearest: --config.batch_size"),
        ("--config.model=8", "the config has no field --config.model"),
        ("--config.batch_size.x=8", "the config has no field --config.batch_size.x"),
        *((f"--config.data.lengths={text}", "must be a tuple, such as") for text in ("(8,", "x y", "(" * 10_000)),
    ],
)
def test_other_values_and_unknown_fields_are_refused(argument, message):
    config = demo_retrieval.get_config() if "lengths" in argument else demo.get_config()
    with pytest.raises(InputError, match=re.escape(message)):
        apply_overrides(config, [argument])


def test_all_problems_are_listed_together():
    with pytest.raises(InputError, match=r"(?s)config\.batch_size=x.*\nthe config has no field --config\.y"):
        apply_overrides(demo.get_config(), ["--config.batch_size=x", "--config.y=1"])
