import re
from pathlib import Path

import pytest

from aia_jax.utils.config import check_fields, read_config
from aia_jax.utils.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    ("config", "field", "value", "message"),
    [
        ("demo", "batch_size", "0", "config.batch_size=0 must be at least 1"),
        ("demo", "epochs", "-3", "config.epochs=-3 must be at least 1"),
        ("demo", "seed", "-1", "config.seed=-1 must be at least 0"),
        ("demo", "data.image_size", str(2**63), "image_size=9223372036854775808 must be at most 2147483647"),
        ("demo", "ema_decay", "1.5", "config.ema_decay=1.5 must lie in 0..1"),
        ("demo", "model.dropout", "nan", "config.model.dropout=nan must be a finite number"),
        ("demo", "eval.threshold", "-0.1", "config.eval.threshold=-0.1 must lie in 0..1"),
        ("demo", "loss.gamma_neg", "inf", "config.loss.gamma_neg=inf must be a finite number"),
        ("demo", "optimizer.max_learning_rate", "-1e-3", "max_learning_rate=-0.001 must be at least 0"),
        ("demo", "optimizer.eps", "0", "config.optimizer.eps=0.0 must be above 0"),
        ("demo_retrieval", "data.lengths", "('x',)", "data.lengths=('x',) must be whole numbers above 0 in increasing"),
        ("demo_retrieval", "data.lengths", "(8, 4)", "data.lengths=(8, 4) must be whole numbers above 0 in increasing"),
        ("demo", "batch_size", "\udcff", "--config.batch_size"),
        ("demo", "data.\udcff", "1", "--config.data."),
        ("demo", 'data.""x', "1", 'the config has no field --config.data.""x'),
    ],
)
def test_numbers_that_cannot_be_are_refused(config, field, value, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_config(f"{CONFIGS}/{config}.py", [f"--config.{field}={value}"])


def test_all_of_them_are_told_together():
    with pytest.raises(InputError, match=r"config\.batch_size=0 .*\nconfig\.data\.num_workers=-1 "):
        read_config(f"{CONFIGS}/demo.py", ["--config.batch_size=0", "--config.data.num_workers=-1"])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_the_configs_pass(path):
    if path.stem not in ("base", "__init__"):
        check_fields(read_config(str(path)))
