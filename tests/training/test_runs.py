import json

import pytest

from aia_jax.configs import demo
from aia_jax.training.runs import check_same_config
from aia_jax.utils.errors import InputError


@pytest.fixture
def workdir(tmp_path):
    """A run of an earlier version with one checkpoint."""
    config = demo.get_config().to_dict()
    config["model"]["gate_kernels"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    return tmp_path


def test_only_resumable_and_free_fields_may_differ(workdir):
    config = demo.get_config()
    config.update_from_flattened_dict({"data.root": "elsewhere", "log_every": 7, "init_labels": "by_name"})
    check_same_config(workdir, config)
    config.batch_size = 8
    config.model.dropout = 0.5
    check_same_config(workdir, config, free=("batch_size", "model.dropout"))
    with pytest.raises(
        InputError, match=r"(?s)batch_size: 16 there, 8 given\n.*model\.dropout: 0\.0 there, 0\.5 given$"
    ):
        check_same_config(workdir, config)


def test_a_run_without_the_fields_of_later_versions_has_their_earlier_values(workdir):
    written = json.loads((workdir / "config.json").read_text())
    del written["model"]["score"], written["eval"]["epoch"]
    (workdir / "config.json").write_text(json.dumps(written))
    config = demo.get_config()
    check_same_config(workdir, config)
    config.model.score = "softmax"
    with pytest.raises(InputError, match=r"config\.model\.score: sigmoid there, softmax given$"):
        check_same_config(workdir, config)


def test_the_config_of_a_workdir_without_checkpoints_does_not_count(workdir):
    (workdir / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is damaged \(.*\); delete it, or give another workdir"):
        check_same_config(workdir, demo.get_config())
    (workdir / "checkpoints" / "4").rmdir()
    check_same_config(workdir, demo.get_config())
