import argparse
import dataclasses
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from aia_jax.cli.flags import Parser
from aia_jax.cli.main import main
from aia_jax.cli.train import _next_commands, train
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.metrics.annotation import annotation_metrics
from aia_jax.tasks.registry import make_task
from aia_jax.training.runs import run_arrays
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError
from tests.helpers.toy_task import losses
from tests.helpers.untrained import annotator_config, write_config

REPOSITORY = Path(__file__).resolve().parents[2]


def small_demo(**overrides):
    """The demo, reduced to a few seconds."""
    fields = {"epochs": 2, "log_every": 1, "batch_size": 16, "model.num_heads": 2, "eval.batch_size": 16}
    fields |= {"data.num_train": 80, "data.num_test": 21, "data.num_workers": 0, "data.validation_fraction": 0.2}
    return annotator_config(**fields | overrides)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, cache_dir):
    path = tmp_path_factory.mktemp("run")
    train(small_demo(), path)
    return path


def test_training_ends_with_numbers_and_pictures(workdir):
    output = workdir / "evaluation"
    metrics = json.loads((output / "metrics.json").read_text())
    names = {"precision", "recall", "f1", "n_plus", "map", "overall_precision", "overall_recall", "overall_f1"}
    assert names < metrics.keys()
    assert metrics["num_images"] == 21
    assert metrics["weights"] in ("raw", "ema")
    scores = np.load(output / "scores.npz")
    labels = len(scores["labels"])
    assert scores["scores"].shape == (21, labels)
    assert scores["scores"].dtype == np.float32
    assert scores["targets"].dtype == np.uint8
    assert list(scores["image_names"]) == sorted(scores["image_names"])
    again = annotation_metrics(scores["scores"], scores["targets"], metrics["threshold"])
    assert {name: metrics[name] for name in again} == pytest.approx(again)
    for name in ("predictions.png", "attention.png", "curves.png"):
        with Image.open(output / name) as picture:
            picture.load()
            assert min(picture.size) > 200


def test_one_device_gives_the_same_losses(workdir, tmp_path):
    config = small_demo()
    Trainer(config, make_task(config), tmp_path, devices=jax.devices()[:1]).fit()
    assert len(losses(workdir)) == 8
    assert losses(tmp_path) == pytest.approx(losses(workdir), rel=1e-5)


def test_evaluating_again_gives_the_same_and_a_published_row_and_takes_the_training_split(workdir, tmp_path, capsys):
    first = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    rows = first.pop("rows")
    assert evaluate(small_demo(published="attention_pooling/corel5k"), workdir, tmp_path) == pytest.approx(first)
    assert rows[0]["name"].startswith("best epoch")
    assert rows[0]["f1"] == first["f1"]
    assert rows[-1]["epoch"] == 2
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("best epoch", "last epoch", "0.5200", "difference"))
    assert evaluate(small_demo(), workdir, tmp_path, split="train")["num_images"] == 64


def test_a_run_is_evaluated_in_the_precision_of_the_config(workdir, tmp_path, capsys):
    config = write_config(tmp_path / "config.py", small_demo(**{"model.dtype": "bfloat16"}))
    assert main(["evaluate", f"--config={config}", f"--workdir={workdir}", f"--output={tmp_path}"]) == 0
    assert "computing in bfloat16, config.model.dtype" in capsys.readouterr().out
    half, full = (json.loads((path / "metrics.json").read_text()) for path in (tmp_path, workdir / "evaluation"))
    assert (half["rows"][0]["dtype"], full["rows"][0]["dtype"]) == ("bfloat16", "float32")
    scores, exact = (np.load(folder / "scores.npz")["scores"] for folder in (tmp_path, workdir / "evaluation"))
    assert 0 < np.abs(scores - exact).max() < 0.02
    assert half["map"] == pytest.approx(full["map"], abs=3)  # per cent, over 21 images


def test_placement_in_device_memory_changes_nothing(tmp_path):
    """Both runs are equal to the bit with XLA's default fusion, which the tests of this process may not have."""
    program = f"""
from pathlib import Path
from aia_jax.tasks.registry import make_task
from aia_jax.training.trainer import Trainer
from tests.cli.test_train_evaluate import small_demo
for place in ("host", "device"):
    config = small_demo(**{{"data.placement": place}})
    Trainer(config, make_task(config), Path({str(tmp_path)!r}, place)).fit()
"""
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert losses(tmp_path / "device") == losses(tmp_path / "host")
    (device, _), (host, _) = (run_arrays(tmp_path / place) for place in ("device", "host"))
    jax.tree.map(np.testing.assert_array_equal, device, host)


def test_other_options_train(tmp_path):
    config = small_demo(**{"mixup": True, "model.head": "gap", "loss.name": "asymmetric", "optimizer.clip_norm": 1.0})
    train(config, tmp_path)
    assert (tmp_path / "evaluation" / "metrics.json").exists()
    assert not (tmp_path / "evaluation" / "attention.png").exists()


def test_a_checkpoint_of_another_model_is_refused(workdir, tmp_path):
    copy, wider = shutil.copytree(workdir, tmp_path / "copy"), small_demo(**{"model.hidden_size": 32})
    with pytest.raises(InputError, match=r"config\.model\.hidden_size: 16 there, 32 given"):
        evaluate(wider, copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"head\.query_embedding: \(22, 16\) there, \(22, 32\) in the model"):
        evaluate(wider, copy, tmp_path / "out")


def test_data_with_other_labels_are_refused(workdir, tmp_path):
    task = make_task(small_demo())
    test = task.split("test")
    task._splits["test"] = dataclasses.replace(test, labels=test.labels[::-1])
    with pytest.raises(InputError, match="trained on other labels, or on another order of them"):
        evaluate(small_demo(), workdir, tmp_path / "out", task=task)
    task.split("train")
    with pytest.raises(InputError, match="list different labels"):
        _ = task.labels


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.placement": "gpu"}, "config.data.placement='gpu'"),
        ({"model.backbone": "tresnet_s"}, "tresnet_tiny"),
        ({"data.image_size": 30}, "config.data.image_size=30 is no multiple of 4"),
        ({"published": "attention_pooling/corel"}, "known: attention_pooling/corel5k"),
        ({"task": "detection"}, "config.task='detection' is unknown"),
    ],
)
def test_bad_fields_are_refused(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        train(small_demo(**overrides), tmp_path)


@pytest.mark.parametrize("task", ["annotation", "retrieval", "search"])
def test_the_next_commands_parse_and_name_the_run(task, tmp_path):
    workdir, flags = tmp_path / "my run", ["--config", "demo", "--config.model.head='a b'"]
    config = ConfigDict({"task": task, "eval": {"split": "test"}})
    arguments = argparse.Namespace(config=config, workdir=workdir, config_flags=flags)
    title, *lines = _next_commands(arguments).splitlines()
    assert title.startswith("next")
    names = {"annotation": ["evaluate", "annotate"], "retrieval": ["evaluate"], "search": ["search"]}[task]
    for line, name in zip(lines, names, strict=True):
        words = shlex.split(line)
        parser = Parser("")
        importlib.import_module(f"aia_jax.cli.{name}").add_arguments(parser)
        parsed = parser.parse(words[words.index(name) + 1 :])
        assert parsed.workdir == workdir
        assert getattr(parsed, "overrides", []) == (flags[2:] if name == "evaluate" else [])
