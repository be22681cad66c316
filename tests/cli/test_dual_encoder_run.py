import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from aia_jax.cli.main import main
from aia_jax.cli.train import train
from aia_jax.configs import dual_encoder
from aia_jax.data import scenes
from aia_jax.models import efficientnet_lite
from aia_jax.tasks.registry import make_task
from aia_jax.training.preemption import AgreedStop
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError, Interrupted
from tests.helpers.text_model import needs_text_model

pytestmark = needs_text_model
SIZES = {"train": (0, 48), "validation": (100, 12), "test": (200, 12)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Generated scenes with their captions, two or one for each."""
    root = tmp_path_factory.mktemp("captions")
    (root / "images").mkdir()
    for split, (first, count) in SIZES.items():
        records = []
        for index in range(first, first + count):
            scene = scenes.draw(3, index, 48)
            Image.fromarray(scene.image).save(root / "images" / f"{index}.png")
            records.append({"image": f"{index}.png", "captions": scene.captions[: 1 + index % 2]})
        (root / f"{split}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return root


def config(root, **overrides):
    config = dual_encoder.get_config("captions")
    config.update({"epochs": 3, "batch_size": 16, "log_every": 1, "init_backbone": "efficientnet_lite0"})
    config.data.update({"root": str(root), "captions": "", "image_size": 32})
    config.model.update({"backbone": "efficientnet_lite0", "embed_size": 32, "word_size": 16})
    config.eval.batch_size = 8
    config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(scope="module")
def workdir(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    train(config(root), path)
    return path


def test_training_writes_recalls_and_a_picture(workdir):
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert metrics["num_images"] == 12
    assert metrics["num_captions"] == 18
    assert metrics["rsum"] > 250  # by chance: 170
    assert (workdir / "evaluation" / "retrieval.png").exists()


def test_an_interrupted_run_continues_to_the_same_losses(root, workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(AgreedStop, "signum", lambda self, step: 15 if step == 5 else None)
    with pytest.raises(Interrupted):
        train(config(root), tmp_path)
    monkeypatch.undo()
    train(config(root), tmp_path)
    losses = [
        [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (workdir, tmp_path)
    ]
    assert losses[0] == losses[1]


def small_backbone(monkeypatch):
    """Keeps two blocks of EfficientNet-Lite, whose gradients compile fast."""
    monkeypatch.setattr(
        efficientnet_lite, "STAGES", [dataclasses.replace(stage, blocks=1) for stage in efficientnet_lite.STAGES[:2]]
    )


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.freeze_backbone": False, "model.text_features": ("words",), "data.flips": "both"},
        {"model.freeze_backbone": True, "loss.visual": True, "loss.name": "sigmoid", "data.flips": "horizontal"},
    ],
    ids=["trained backbone and words alone", "frozen maps with flips, sigmoid loss and Visual Semantic Loss"],
)
def test_the_other_options_train(root, tmp_path, monkeypatch, overrides):
    small_backbone(monkeypatch)
    options = config(root, epochs=2, **{"model.image_features": ("mean", "queries")}, **overrides)
    task, options.init_backbone = make_task(options), ""
    trainer = Trainer(options, task, tmp_path)
    trainer.fit()
    records = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 6
    assert np.isfinite(losses).all()


def test_search_finds_photos_by_a_sentence(workdir, root, tmp_path, capsys):
    scene = scenes.draw(3, 3, 48)
    page = tmp_path / "found.html"
    command = ["search", "--workdir", str(workdir), "--images", str(root / "images"), "--index", str(tmp_path / "i")]
    assert main([*command, scene.captions[0], "--top", "3", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "72 photos indexed: 72 new" in out
    assert len(out.partition(scene.captions[0])[2].partition("written")[0].strip().splitlines()) == 5
    assert scene.captions[0] in page.read_text()
    arrays = list((tmp_path / "i").glob("rows-*/vectors.npy"))
    assert np.load(arrays[0]).dtype == np.float16
    assert main([*command, "a red star"]) == 0
    assert "0 new, 0 changed, 0 gone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("query", "problem"), [("", "is empty"), ("🙂", "no known word"), ("\n", "has no word|is empty")]
)
def test_a_query_without_words_is_refused(workdir, root, tmp_path, capsys, query, problem):
    command = ["search", "--workdir", str(workdir), "--images", str(root / "images"), "--index", str(tmp_path / "i")]
    assert main([*command, query]) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in problem.split("|"))


def test_a_sentence_of_a_thousand_words_is_cut_and_a_note_says_so(workdir, root, tmp_path, capsys):
    command = ["search", "--workdir", str(workdir), "--images", str(root / "images"), "--index", str(tmp_path / "i")]
    assert main([*command, "red star " * 500]) == 0
    assert "only its start is used" in capsys.readouterr().err


def test_values_that_do_not_fit_are_refused(root):
    with pytest.raises(InputError, match="needs an EfficientNet-Lite"):
        make_task(config(root, **{"model.backbone": "tresnet_m"}))
    with pytest.raises(InputError, match="must be some of mean, max, classes, queries"):
        make_task(config(root, **{"model.image_features": ("mean", "median")}))
    with pytest.raises(InputError, match="accumulate_steps"):
        make_task(config(root, accumulate_steps=2))
