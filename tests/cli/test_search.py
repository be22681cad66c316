"""Image search: training, evaluation, and `aia search` on the photos of a folder."""

import io
import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from aia_jax.cli.main import main
from aia_jax.cli.train import train
from aia_jax.configs import demo_search
from aia_jax.data import scenes
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.inference.searcher import PhotoSearch
from aia_jax.tasks.registry import make_task
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError
from tests.helpers.photos import TURNED
from tests.helpers.toy_task import losses
from tests.helpers.untrained import annotator_config, write_run


@pytest.fixture(scope="module")
def annotator(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("annotator") / "run", annotator_config())


def small_config(annotator, **overrides):
    config = demo_search.get_config()
    config.update({"epochs": 1, "batch_size": 64, "log_every": 1})
    config.data.update({"annotator": str(annotator), "num_train": 40, "num_test": 16, "query_words": 2})
    config.model.update({"embed_size": 16, "word_size": 8})
    config.optimizer.max_learning_rate = 1e-2
    config.eval.batch_size = 16
    config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(scope="module")
def workdir(annotator, tmp_path_factory):
    path = tmp_path_factory.mktemp("search")
    train(small_config(annotator), path)
    return path


def test_training_ends_with_metrics_and_pictures(workdir, annotator):
    folder = workdir / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_images"] == 16
    assert 0 < metrics["ndcg_10"] <= 1
    assert metrics["rows"][0]["model"] == "AMC"
    assert metrics["new_num_queries"] < metrics["num_queries"]
    rankings = np.load(folder / "rankings.npz")
    task = make_task(small_config(annotator))
    relevant = task.split("test").queries.relevant.toarray()
    assert rankings["images_of_queries"].shape == (len(rankings["queries"]), 16)
    first_right = np.take_along_axis(relevant, rankings["images_of_queries"], axis=1)[:, 0]
    assert np.mean(first_right) == pytest.approx(metrics["r1"])
    assert np.median(rankings["rank_of_right"]) == metrics["median_rank"]
    assert {"roc.png", "search.html"} <= {path.name for path in folder.iterdir()}


def test_the_loss_falls(workdir):
    found = list(losses(workdir).values())
    assert np.mean(found[-3:]) < 0.8 * np.mean(found[:3])


def test_one_device_gives_the_same_losses(annotator, workdir, tmp_path):
    config = small_config(annotator)
    Trainer(config, make_task(config), tmp_path, devices=jax.devices()[:1]).fit()
    one, eight = ([losses(path)[step] for step in range(1, 6)] for path in (tmp_path, workdir))
    np.testing.assert_allclose(one, eight, rtol=1e-4)


def test_ablations_are_scored_by_the_same_commands(annotator, tmp_path, capsys):
    config = small_config(annotator, **{"model.modalities": "keywords", "model.keyword_attention": False})
    train(config, tmp_path)
    assert "AMC, keywords alone without LAN" in capsys.readouterr().out
    metrics = evaluate(config, tmp_path, tmp_path / "again", split="test")
    written = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["auc"] == pytest.approx(written["auc"])


def test_keywords_may_be_the_true_labels(annotator):
    task = make_task(small_config(annotator, **{"data.keywords": "labels"}))
    part, targets = task.split("train").images, task.source._splits.load("train").targets
    for row in range(len(part)):
        assert part.keywords[row, : part.counts[row]].tolist() == np.flatnonzero(targets[row]).tolist()


def test_words_may_start_from_vectors(annotator, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("red 1 0 0 0 0 0 0 0\nblue 0 2 0 0 0 0 0 0\n")
    task = make_task(small_config(annotator, **{"model.word_vectors": str(path)}))
    words = np.asarray(task.build_model(nnx.Rngs(0)).words[...])
    red, blue = (words[task.vocabulary.ids[word]] for word in ("red", "blue"))
    np.testing.assert_allclose(2 * red[0], blue[1], rtol=1e-6)
    assert np.count_nonzero(red) == np.count_nonzero(blue) == 1
    assert np.count_nonzero(words) > 0.9 * (words.size - 14)  # the others are drawn


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.annotator": ""}, "config.data.annotator: name the folder of an annotation run"),
        ({"data.annotator": "nowhere"}, "nowhere is no folder of a run"),
        ({"data.keywords": "tags"}, "config.data.keywords='tags' is unknown; known: annotator, labels"),
        ({"data.name": "flickr"}, "config.data.name='flickr' is unknown"),
        ({"eval.split": "train"}, "config.eval.split='train' is unknown"),
        ({"model.modalities": "text"}, "config.model.modalities: unknown 'text'"),
        ({"batch_size": 1}, "config.batch_size=1 must be at least 2"),
        ({"loss.margin": -1.0}, "config.loss.margin=-1.0 must be above 0"),
        ({"eval.metric": "median_rank"}, "config.eval.metric='median_rank' cannot choose an epoch; known: ndcg_5"),
        ({"data.split_seed": 5}, r"was trained on other parts of scenes: set config.data.split_seed=1, "),
        ({"accumulate_steps": 2}, "config.accumulate_steps: irrelevant images are sampled"),
    ],
)
def test_fields_that_do_not_fit_are_refused(annotator, tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        train(small_config(annotator, **overrides), tmp_path)


def test_a_run_may_start_from_another(annotator, workdir, tmp_path, capsys):
    train(small_config(annotator, init_from=str(workdir), **{"optimizer.max_learning_rate": 1e-5}), tmp_path)
    assert losses(tmp_path)[1] < 0.9 * losses(workdir)[1]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(scenes.draw(3, number, 48).image).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def search(workdir, photos, tmp_path):
    def run(*arguments):
        flags = ["--workdir", str(workdir), "--images", str(photos), "--index", str(tmp_path / "index")]
        return main(["search", *flags, "--batch_size", "8", *arguments])

    return run


def listed(text):
    """Returns the files and scores of the printed rankings."""
    lines = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit() and ".png" in line]
    return [(words[5], float(words[1])) for words in lines]


def test_ranked_photos_are_printed_and_the_index_is_kept(search, photos, tmp_path, capsys):
    (photos / "torn.jpg").write_bytes(b"\xff\xd8")
    upright = Image.fromarray(scenes.draw(3, 50, 48).image)
    upright.save(photos / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(photos / "turned.png", exif=TURNED)
    assert search("red circle", "--top", "20", "--html", str(tmp_path / "found.html")) == 0
    first = capsys.readouterr()
    assert "14 photos indexed: 14 new, 0 changed, 0 gone" in first.out
    assert "1 cannot be used and are left out:\n  torn.jpg: " in first.err
    scores = dict(listed(first.out))
    assert len(scores) == 14
    assert scores["upright.png"] == pytest.approx(scores["turned.png"], abs=2e-3)
    assert abs(scores["upright.png"] - scores["05.png"]) > 5e-3
    page = (tmp_path / "found.html").read_text()
    assert page.count("<img") >= 10
    assert "red circle" in page
    (photos / "03.png").unlink()
    assert search("red circle", "blue ring", "--top", "5") == 0
    second = capsys.readouterr().out
    assert "13 photos indexed: 0 new, 0 changed, 1 gone" in second
    assert len(listed(second)) == 10
    path = tmp_path / "index" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": "another"}))
    assert search("red circle") == 0
    assert "was rebuilt: it was made by another model" in capsys.readouterr().out


def test_scores_are_those_of_the_model(workdir):
    found = PhotoSearch(workdir, batch_size=8)
    images = np.stack([scenes.draw(3, number, 32).image for number in range(12)])
    rows = [found.compute(images[start : start + 8]) for start in (0, 8)]
    parts = [(part, np.arange(len(part["counts"]))) for part in rows]
    best = found.search("red circle", parts, count=12, shortlist=0)
    task = make_task(found.config)
    maps = np.concatenate([found.annotator.maps(images[start : start + 8]) for start in (0, 8)])
    keywords, counts = (np.concatenate([part[name] for part in rows]) for name in ("keywords", "counts"))
    model = found._model
    expected = task.attend(
        model, {"maps": maps.astype(np.float16), "keywords": keywords, "counts": counts}, found.encode("red circle")
    )
    expected = jax.device_get(expected)
    np.testing.assert_allclose(best.scores, np.sort(expected["score"][:, 0])[::-1], rtol=2e-3)
    np.testing.assert_allclose(best.weights, expected["weights"][best.rows, 0], rtol=2e-3)
    np.testing.assert_allclose(best.attention, expected["visual_attention"][best.rows, 0], rtol=2e-2)
    # A shortlist leaves out whom the model without visual attention ranks last.
    rough = found.rough_scores(found.encode("red circle"), parts)
    few = found.search("red circle", parts, count=3, shortlist=5)
    assert set(few.rows) <= set(np.argsort(-rough)[:5])
    assert found.search("red circle", parts, count=12, shortlist=3).rows.tolist() == best.rows.tolist()
    usable = [np.array([0, 2, 3, 7]), np.arange(len(parts[1][1]))]  # the other rows of the first part are outdated
    fewer = [(arrays, own) for (arrays, _), own in zip(parts, usable, strict=True)]
    kept = np.concatenate([usable[0], 8 + usable[1]])
    np.testing.assert_array_equal(found.rough_scores(found.encode("red circle"), fewer), rough[kept])
    order = [row for row in best.rows if row in kept]
    assert kept[found.search("red circle", fewer, count=12, shortlist=7).rows].tolist()[:3] == order[:3]


def test_queries_come_from_a_pipe(search, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("red circle\nunheard\nblue ring\n"))
    assert search("--top", "2") == 0
    printed = capsys.readouterr()
    assert len(listed(printed.out)) == 4
    assert "no word of 'unheard' is known" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unheard words"], "no word of 'unheard words' is known to"),
        (["red", "blue", "--html", "x.html"], "--html shows one query; give exactly one"),
        (["red", "--html", "nowhere/x.html"], "--html nowhere/x.html names no file in an existing folder"),
        (["red", "--annotator", "nowhere"], "nowhere"),
        (["red", "--images", "nowhere"], "nowhere does not exist; name a folder of photos"),
    ],
)
def test_mistakes_are_reported(search, arguments, message, capsys):
    assert search(*arguments) == 2
    assert message in capsys.readouterr().err


def test_runs_of_another_system_or_annotator_are_refused(search, annotator, workdir, tmp_path, capsys):
    other = write_run(tmp_path / "other", annotator_config(**{"model.hidden_size": 32}))
    with pytest.raises(InputError, match="on maps and keywords of another annotator"):
        evaluate(small_config(other), None, tmp_path / "out", weights=(str(workdir),))
    with pytest.raises(InputError, match=r"holds a run of .*'search'; name one of annotation"):
        train(small_config(workdir), tmp_path / "run")
    assert search("red", "--workdir", str(annotator)) == 2
    assert "name one of image search" in capsys.readouterr().err
    other = write_run(tmp_path / "seed", annotator_config(seed=5))  # only the weights differ
    assert search("red", "--annotator", str(other)) == 2
    assert "is another annotator than" in capsys.readouterr().err
