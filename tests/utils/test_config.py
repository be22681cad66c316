import re
from pathlib import Path

import pytest

from aia_jax.configs import demo
from aia_jax.utils.config import apply_overrides, packaged_configs, read_config
from aia_jax.utils.config_fields import flatten
from aia_jax.utils.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


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
        *((f"--config.data.lengths={text}", "data.lengths", (8, 16)) for text in ("(8, 16)", "[8, 16]", "8,16")),
    ],
)
def test_values_take_the_type_of_their_field(argument, field, value):
    config = demo.get_config()
    config.data.lengths = (4,)
    earlier = ["--config.mixup=0", "--config.model.freeze_backbone", "--config.batch_size=4"]  # the last value counts
    apply_overrides(config, [*earlier, argument])
    found = flatten(config.to_dict())[field]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.epochs=-3", "config.epochs=-3 must be at least 1"),
        ("--config.seed=-1", "config.seed=-1 must be at least 0"),
        (f"--config.data.image_size={2**63}", "image_size=9223372036854775808 must be at most 2147483647"),
        ("--config.ema_decay=1.5", "config.ema_decay=1.5 must lie in 0..1"),
        ("--config.ema_decay=None", "config.ema_decay=None must lie in 0..1"),
        ("--config.ema_decay=high", "must be a number"),
        ("--config.model.dropout=nan", "config.model.dropout=nan must be a finite number"),
        ("--config.eval.threshold=-0.1", "config.eval.threshold=-0.1 must lie in 0..1"),
        ("--config.loss.gamma_neg=inf", "config.loss.gamma_neg=inf must be a finite number"),
        ("--config.optimizer.max_learning_rate=-1e-3", "max_learning_rate=-0.001 must be at least 0"),
        ("--config.optimizer.eps=0", "config.optimizer.eps=0.0 must be above 0"),
        ("--config.on_nonfinite=ignore", "config.on_nonfinite='ignore' is unknown; known: stop, skip"),
        ("--config.data.lengths=('x',)", "data.lengths=('x',) must be whole numbers above 0 in increasing"),
        ("--config.data.lengths=(8, 4)", "data.lengths=(8, 4) must be whole numbers above 0 in increasing"),
        *((f"--config.data.lengths={text}", "must be a tuple, such as") for text in ("(8,", "x y", "(" * 10_000)),
        ("--config.batch_size=many", "'--config.batch_size=many': must be a whole number"),
        *((f"--config.batch_size={text}", "must be a whole number") for text in ("1e3", "", "9" * 5000)),
        ("--config.batch_size=\udcff", "--config.batch_size"),
        ("--config.batch_size", "needs a value, as --config.field=value"),
        ("--noconfig.batch_size", "needs a value"),
        ("--noconfig.mixup=1", "'--noconfig.mixup=1': takes no value"),
        ("--config.mixup=maybe", "must be true or false"),
        ("--config.batch_sise=8", "no field --config.batch_sise; nearest: --config.batch_size"),
        ("--config.model=8", "the config has no field --config.model"),
        ("--config.batch_size.x=8", "the config has no field --config.batch_size.x"),
        ("--config.data.\udcff=1", "--config.data."),
        ('--config.data.""x=1', 'the config has no field --config.data.""x'),
    ],
)
def test_other_values_and_unknown_fields_are_refused(argument, message):
    config = "demo_retrieval" if "lengths" in argument else "demo"
    with pytest.raises(InputError, match=re.escape(message)):
        read_config(f"{CONFIGS}/{config}.py", [argument])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.batch_size=x", "--config.y=1"], r"(?s)config\.batch_size=x.*\nthe config has no field --config\.y"),
        (
            ["--config.batch_size=0", "--config.data.num_workers=-1"],
            r"config\.batch_size=0 .*\nconfig\.data\.num_workers=-1 ",
        ),
    ],
)
def test_all_problems_are_listed_together(overrides, message):
    with pytest.raises(InputError, match=message):
        read_config(f"{CONFIGS}/demo.py", overrides)


def test_a_parameter_of_the_loss_may_be_none():
    assert read_config(f"{CONFIGS}/vg500.py").loss.gamma_neg == 2.0
    assert read_config(f"{CONFIGS}/vg500.py", ["--config.loss.gamma_neg=None"]).loss.gamma_neg is None


def test_a_run_is_no_config():
    with pytest.raises(InputError, match=r"--config run/config.json must be a config file .*; a run goes to --workdir"):
        read_config("run/config.json")


@pytest.mark.parametrize("name", packaged_configs())
def test_every_packaged_config_is_found_by_name_valid_and_locked(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config(name).is_locked


def test_a_file_goes_before_a_packaged_config_and_unknown_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config("sgraf:f30k,sgr").model.reasoning == "sgr"
    for name in ("corel5", "configs/corel5.py"):
        with pytest.raises(InputError, match=rf"--config {name}: no such file, .* nearest: corel5k; `aia configs`"):
            read_config(name)
    Path("demo").write_text("from aia_jax.configs.corel5k import get_config\n")
    assert read_config("demo").data.name == "corel5k"


def test_a_config_file_is_executed_once(tmp_path, capsys):
    path = tmp_path / "own.py"
    path.write_text("from aia_jax.configs.demo import get_config\nprint('executed')\n")
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
