import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from aia_jax.cli.convert import convert_back
from aia_jax.cli.train import train
from aia_jax.configs import demo_retrieval, sgraf
from aia_jax.data.vocabulary import Vocabulary
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.metrics.retrieval import retrieval_metrics
from aia_jax.tasks.registry import make_task
from aia_jax.training.runs import check_same_config
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError
from aia_jax.weights.load import model_shapes
from tests.helpers.text_model import needs_text_model

WORDS = ("dog", "cat", "boat", "tree", "house", "bird", "car", "boy")
SIZES = {"train": 40, "dev": 8, "test": 9}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images whose features are their words, in SCAN's layout."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (root / "f30k_precomp").mkdir()
    meaning = rng.normal(size=(len(WORDS), 6)).astype(np.float32)
    everything = []
    for stem, count in SIZES.items():
        words = rng.integers(0, len(WORDS), (count, 2))
        features = meaning[words][:, [0, 0, 1]] + 0.1 * rng.normal(size=(count, 3, 6)).astype(np.float32)
        np.save(root / "f30k_precomp" / f"{stem}_ims.npy", features.astype(np.float32))
        captions = [f"a {WORDS[a]} and {'the ' * k}{WORDS[b]}" for a, b in words for k in range(5)]
        (root / "f30k_precomp" / f"{stem}_caps.txt").write_text("\n".join(captions))
        everything += captions
    (root / "vocab").mkdir()
    Vocabulary.build(everything, min_count=1).save(root / "vocab" / "f30k_precomp_vocab.json")
    return root


def small_config(root, reasoning="saf", **overrides):
    config = sgraf.get_config(f"f30k,{reasoning}")
    config.update({"epochs": 2, "batch_size": 16, "log_every": 1})
    config.data.update({"root": str(root), "lengths": (8, 12)})
    config.model.update({"num_regions": 3, "num_features": 6, "block": 64})
    config.model.update({"embed_size": 16, "word_size": 8, "similarity_size": 8})
    config.optimizer.update({"decay_epochs": 1, "max_learning_rate": 1e-2})
    config.eval.update({"batch_size": 16, "block": 32})
    config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(scope="module")
def workdir(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("saf")
    train(small_config(root), path)
    return path


def records(workdir, kind):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_training_ends_with_recalls_both_ways(workdir, root):
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert (metrics["num_images"], metrics["num_captions"]) == (9, 45)
    assert 0 <= metrics["rsum"] <= 600
    assert metrics["weights"] == "raw"
    best = metrics["rows"][0]
    assert best["published"] == "vsl/f30k/saf"
    assert best["model"] == "SAF, 16 / 8, 3 x 6 features"
    rankings = np.load(workdir / "evaluation" / "rankings.npz")
    assert rankings["captions_of_images"].shape == (9, 10)
    assert rankings["images_of_captions"].shape == (45, 9)
    assert np.mean(rankings["rank_of_captions"] == 1) * 100 == pytest.approx(metrics["t2i_r1"])
    hits = rankings["images_of_captions"][:, 0] == np.arange(45) // 5
    assert np.mean(hits) * 100 == pytest.approx(metrics["t2i_r1"])


def test_losses_are_logged_by_name_and_the_rate_falls(workdir):
    lines = records(workdir, "train")
    assert len(lines) == 25
    for line in lines:
        assert line["loss"] == pytest.approx(line["triplet"] + line["visual"], rel=1e-5)
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-2] * 12 + [1e-3] * 13)
    assert [line["kind"] for line in records(workdir, "validation_raw")] == ["validation_raw"] * 2
    assert not records(workdir, "validation_ema")


def test_one_device_gives_the_same_losses(root, workdir, tmp_path):
    config = small_config(root)
    config.epochs = 1
    Trainer(config, make_task(config), tmp_path, devices=jax.devices()[:1]).fit()
    # Later ones drift apart: ranks at a temperature of 0.001 make much of the last bits.
    losses = [[line["loss"] for line in records(path, "train")][:6] for path in (tmp_path, workdir)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_an_ensemble_is_the_mean_of_similarities(root, workdir, tmp_path, capsys):
    other = tmp_path / "sgr"
    fields = {"epochs": 1, "data.lengths": (12,), "loss.visual": False, "loss.textual": True}
    train(small_config(root, "sgr", **fields), other)
    assert {"triplet", "textual"} < records(other, "train")[0].keys()
    metrics = evaluate(small_config(root), None, tmp_path / "both", weights=(str(other), str(workdir)))
    rows = json.loads((tmp_path / "both" / "metrics.json").read_text())["rows"]
    assert [row["published"] for row in rows] == ["vsl/f30k/sgraf", "vsl/f30k/saf", "vsl/f30k/sgr"]
    assert rows[0]["model"].startswith("SGRAF")
    assert metrics["rsum"] == rows[0]["rsum"]
    assert rows[1]["rsum"] == json.loads((workdir / "evaluation" / "metrics.json").read_text())["rsum"]
    assert "published (vsl/f30k/sgraf)" in capsys.readouterr().out


def test_scores_of_a_split_come_in_its_order(root, workdir):
    """Batches are made by length; the matrix is not."""
    task = make_task(small_config(root))

    def predictor(fn, weights, batches, shared=None):
        rows = [{name: column[batch["mask"]] for name, column in batch.items()} for batch in batches]
        index = np.concatenate([batch["index"] for batch in rows])
        return [{"similarity": 10.0 * index[:, None] + np.arange(9), "index": index}]

    (outputs,) = task.predict_split(predictor, [{}], "test")
    np.testing.assert_array_equal(outputs["similarity"], 10.0 * np.arange(45)[:, None] + np.arange(9))
    assert retrieval_metrics(outputs["similarity"])["num_images"] == 9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.num_features": 7}, "holds 3 x 6 features an image, but config.model.num_regions x num_features is 3"),
        ({"data.name": "scenes"}, "scenes are images, name a config.model.backbone"),
        ({"model.backbone": "tresnet_tiny"}, "is trained on images: set config.data.name to scenes"),
        ({"accumulate_steps": 2}, "the losses rank each pair among all pairs of the batch"),
        ({"eval.split": "dev"}, "config.eval.split='dev' is unknown; known: validation, test"),
        ({"published": "vsl/f8k"}, "config.published='vsl/f8k' is unknown"),
        ({"model.reasoning": "gcn"}, "config.model.reasoning: unknown 'gcn'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(root, tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        train(small_config(root, **overrides), tmp_path)


def test_another_vocabulary_is_refused(root, workdir, tmp_path):
    Vocabulary.build(["a dog and a cat and the boat"], min_count=1).save(tmp_path / "other.json")
    config = small_config(root, **{"data.vocabulary": str(tmp_path / "other.json")})
    with pytest.raises(InputError, match=r"other.json|another vocabulary"):
        evaluate(config, None, tmp_path, weights=(str(workdir),))


@needs_text_model
def test_a_frozen_text_encoder_replaces_the_gru(root, workdir, tmp_path, capsys):
    config = small_config(root, **{"epochs": 1, "model.text": "minilm"})
    train(config, tmp_path / "run")
    assert "MiniLM + SAF" in capsys.readouterr().out
    row = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())["rows"][0]
    assert row["model"].endswith("features, MiniLM")
    assert row["published"] == ""
    paths = model_shapes(make_task(config).build_model)
    assert [path for path in paths if path.startswith("sgraf.text.")] == [
        "sgraf.text.linear.bias",
        "sgraf.text.linear.kernel",
    ]
    split = make_task(config).split("train")
    assert split.padded_tokens(np.array([0, 4]), 12).shape == (2, 12, 384)
    assert split.lengths[:5].tolist() == [6, 7, 8, 9, 10]  # [CLS] a WORD and the WORD [SEP]
    for other, source in ((config, workdir), (small_config(root), tmp_path / "run")):
        with pytest.raises(InputError, match=r"was trained with another text encoder \(.* set config\.model\.text"):
            evaluate(other, None, tmp_path / "other", weights=(str(source),))
    with pytest.raises(InputError, match=r"has no GRU \(config\.model\.text=minilm\)"):
        convert_back(config, tmp_path / "run", tmp_path / "a.pth")


def test_runs_of_earlier_versions_have_a_gru(root, workdir, tmp_path):
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["model"].pop("text") == "gru"
    (tmp_path / "config.json").write_text(json.dumps(record))
    rsum = evaluate(small_config(root), None, tmp_path / "out", weights=(str(tmp_path),))["rsum"]
    assert rsum == json.loads((workdir / "evaluation" / "metrics.json").read_text())["rsum"]
    check_same_config(tmp_path, small_config(root))
    with pytest.raises(InputError, match=r"config\.model\.text: gru there, minilm given"):
        check_same_config(tmp_path, small_config(root, **{"model.text": "minilm"}))


def test_captions_and_a_backbone_train_together_on_scenes(tmp_path, cache_dir):
    config = demo_retrieval.get_config()
    config.update({"epochs": 1, "batch_size": 8})
    config.data.update({"image_size": 32, "num_train": 20, "num_test": 6, "validation_fraction": 0.2})
    config.model.update({"num_regions": 4, "embed_size": 8, "similarity_size": 8})
    config.optimizer.decay_epochs = 1
    config.eval.batch_size = 8
    train(config, tmp_path)
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert (metrics["num_images"], metrics["num_captions"]) == (6, 30)
    with Image.open(tmp_path / "evaluation" / "retrieval.png") as picture:
        picture.load()
        assert min(picture.size) > 400
