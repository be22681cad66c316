import re
from pathlib import Path

import pytest

from aia_jax.utils.config import read_config
from aia_jax.utils.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    ("config", "field", "value", "message"),
    [
        ("demo", "epochs", "-3", "config.epochs=-3 must be at least 1"),
        ("demo", "seed", "-1", "config.seed=-1 must be at least 0"),
        ("demo", "data.image_size", str(2**63), "image_size=9223372036854775808 must be at most 2147483647"),
        ("demo", "ema_decay", "1.5", "config.ema_decay=1.5 must lie in 0..1"),
        ("demo", "model.dropout", "nan", "config.model.dropout=nan must be a finite number"),
        ("demo", "eval.threshold", "-0.1", "config.eval.threshold=-0.1 must lie in 0..1"),
        ("demo", "loss.gamma_neg", "inf", "config.loss.gamma_neg=inf must be a finite number"),
        ("demo", "optimizer.max_learning_rate", "-1e-3", "max_learning_rate=-0.001 must be at least 0"),
        ("demo", "optimizer.eps", "0", "config.optimizer.eps=0.0 must be above 0"),
        ("demo", "ema_decay", "None", "config.ema_decay=None must lie in 0..1"),
        ("demo", "on_nonfinite", "ignore", "config.on_nonfinite='ignore' is unknown; known: stop, skip"),
        ("demo_retrieval", "data.lengths", "('x',)", "data.lengths=('x',) must be whole numbers above 0 in increasing"),
        ("demo_retrieval", "data.lengths", "(8, 4)", "data.lengths=(8, 4) must be whole numbers above 0 in increasing"),
        ("demo", "batch_size", "\udcff", "--config.batch_size"),
        ("demo", "data.\udcff", "1", "--config.data."),
        ("demo", 'data.""x', "1", 'the config has no field --config.data.""x'),
    ],
)
def test_values_that_are_not_allowed_are_refused(config, field, value, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_config(f"{CONFIGS}/{config}.py", [f"--config.{field}={value}"])


def test_all_values_that_are_not_allowed_are_listed():
    with pytest.raises(InputError, match=r"config\.batch_size=0 .*\nconfig\.data\.num_workers=-1 "):
        read_config(f"{CONFIGS}/demo.py", ["--config.batch_size=0", "--config.data.num_workers=-1"])


def test_a_parameter_of_the_loss_may_be_none():
    assert read_config(f"{CONFIGS}/vg500.py").loss.gamma_neg == 2.0
    assert read_config(f"{CONFIGS}/vg500.py", ["--config.loss.gamma_neg=None"]).loss.gamma_neg is None


@pytest.mark.parametrize("path", sorted(set(CONFIGS.glob("*.py")) - {CONFIGS / "base.py"}), ids=lambda path: path.stem)
def test_every_config_is_valid_and_locked(path):
    assert read_config(str(path)).is_locked


def test_a_config_file_is_executed_once(tmp_path, capsys):
    path = tmp_path / "own.py"
    path.write_text("from configs.demo import get_config\nprint('executed')\n")
    assert read_config(str(path), ["--config.batch_size=8"]).batch_size == 8
    assert capsys.readouterr().out == "executed\n"


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        ("", "", r"--config \S+/own.py: defines no function get_config"),
        ("import no_such_module", "", r"--config \S+/own.py: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config(:", "", r"--config \S+/own.py: SyntaxError: "),
        ("def get_config(): return {}", "", r"--config \S+/own.py: get_config returns dict, not a ConfigDict"),
        ("def get_config(size): return {}", "", r"--config \S+/own.py: TypeError: .*size"),
        ("def get_config(): return {}", ":large", r"own.py takes no argument, 'large' was given"),
        ("def get_config(size): raise ValueError(f'{size} is unknown')", ":large", r"^large is unknown$"),
    ],
)
def test_config_files_with_errors_are_refused(tmp_path, text, argument, message):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(f"{tmp_path}/own.py{argument}")
