import base64
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aia_jax
from aia_jax.cli.main import main
from aia_jax.cli.train import train
from aia_jax.configs import demo, dual_encoder
from aia_jax.data import scenes
from aia_jax.data.words.label_texts import LabelTexts
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.inference import open_vocabulary, stored_texts
from aia_jax.inference.annotator import PhotoAnnotator
from aia_jax.inference.sentence_search import SentenceSearch
from aia_jax.inference.trained_dual_encoder import TrainedDualEncoder
from aia_jax.models import efficientnet_lite
from aia_jax.models.conse import class_agreement
from aia_jax.models.layers.common import l2norm
from aia_jax.tasks.registry import make_task
from aia_jax.training.preemption import AgreedStop
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError, Interrupted
from aia_jax.weights.initialization import initializer
from aia_jax.weights.load import load_arrays
from aia_jax.weights.model_folder import read_model_folder
from tests.helpers.gallery_page import read_page
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
        {"model.freeze_backbone": True, "loss.visual": True, "loss.name": "contrastive", "data.flips": "horizontal"},
    ],
    ids=["trained backbone and words alone", "frozen maps with flips, contrastive and Visual Semantic Loss"],
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
    arrays[0].with_name("probabilities.npy").unlink()
    assert main([*command, "a red star"]) == 0
    assert "was rebuilt: it is damaged" in capsys.readouterr().out


@pytest.mark.extras
def test_a_fast_search_prints_the_same_photos(workdir, root, tmp_path, monkeypatch, capsys):
    pytest.importorskip("usearch")
    monkeypatch.setattr("aia_jax.inference.search_index._DERIVED_FROM", 1)
    command = ["search", "--workdir", str(workdir), "--images", str(root / "images"), "--index", str(tmp_path / "i")]
    outputs = []
    for flags in ([], ["--fast"], []):
        assert main([*command, "a red star", "espresso", *flags]) == 0
        outputs.append(re.sub(r" in .* s\)", "", capsys.readouterr().out.partition("gone")[2]))
        assert len(list((tmp_path / "i").glob("rows-*/vectors_int8.npy"))) == (len(outputs) > 1)
    assert outputs[0].count(".png") == 20
    assert outputs[0] == outputs[1] == outputs[2]


def test_the_order_of_found_photos_is_that_of_the_formula(workdir):
    search, rng = SentenceSearch(TrainedDualEncoder.load(workdir, 8)), np.random.default_rng(0)
    parts = []
    for count, own in ((256, range(256)), (100, range(3, 100, 2)), (7, [6]), (1, [0])):  # other rows are outdated
        vectors = rng.standard_normal((count, 32), np.float32)
        vectors[::5] = vectors[0]  # equal scores
        classes = np.argsort(rng.random((count, 1000)))[:, :32].astype(np.uint16)
        probabilities = rng.random((count, 32), np.float32).astype(np.float16)
        arrays = {"vectors": l2norm(vectors).astype(np.float16), "classes": classes, "probabilities": probabilities}
        parts.append((arrays, np.array(own)))
    rows = {name: np.concatenate([arrays[name][own] for arrays, own in parts]) for name in parts[0][0]}
    for query, agrees in (("a red star", False), ("espresso", True)):
        scores = rows["vectors"].astype(np.float32) @ search._encoder.encode_texts([query])[0]
        sentence = search._encoder.texts.encode([query])["sentence"]
        values = np.asarray(class_agreement(np.eye(1000, dtype=np.float32), search._classes, sentence))[:, 0]
        agreement = (values[rows["classes"]] * rows["probabilities"]).sum(axis=1)
        assert agreement.any() == agrees
        expected = scores + np.float32(0.5) * agreement
        found = search.search(query, parts, count=len(scores))
        np.testing.assert_allclose(found.scores, np.sort(expected)[::-1], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found.scores, expected[found.rows], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("query", "problem"), [("", "is empty"), ("🙂", "no known word"), ("\n", "has no word|is empty")]
)
def test_a_query_without_words_is_refused(workdir, root, tmp_path, capsys, query, problem):
    command = ["search", "--workdir", str(workdir), "--images", str(root / "images"), "--index", str(tmp_path / "i")]
    assert main([*command, query]) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in problem.split("|"))


def test_notes_say_which_parts_of_a_query_have_no_effect(workdir, root, tmp_path, capsys):
    command = ["search", "--workdir", str(workdir), "--images", str(root / "images"), "--index", str(tmp_path / "i")]
    assert main([*command, "red star " * 500, "star -red"]) == 0
    notes = capsys.readouterr().err
    assert "only its start is used" in notes
    assert "a word with a minus is not excluded" in notes


def test_values_that_do_not_fit_are_refused(root):
    with pytest.raises(InputError, match="needs an EfficientNet-Lite"):
        make_task(config(root, **{"model.backbone": "tresnet_m"}))
    with pytest.raises(InputError, match="must be some of mean, max, classes, queries"):
        make_task(config(root, **{"model.image_features": ("mean", "median")}))
    with pytest.raises(InputError, match="accumulate_steps"):
        make_task(config(root, accumulate_steps=2))


@pytest.fixture(scope="module")
def model(workdir, tmp_path_factory):
    """The run as a model folder, calibrated with a vocabulary of words in the captions of scenes."""
    folder = tmp_path_factory.mktemp("model") / "scenes"
    patch = pytest.MonkeyPatch()
    words = ("star", "circle", "ring", "night", "red")
    for module in (open_vocabulary, stored_texts):
        patch.setattr(module, "everyday_labels", lambda: LabelTexts(words, words))
    assert main(["package", "--workdir", str(workdir), "--output", str(folder)]) == 0
    patch.undo()
    return folder


def test_a_model_folder_labels_photos_with_any_words(model, root, tmp_path, capsys):
    (tmp_path / "words.txt").write_text("star: a shape with five points\nred\n<b>bold</b>\n")
    annotate = ["annotate", "--model", str(model), "--images", str(root / "images"), "--output", str(tmp_path / "o")]
    command = [*annotate, "--labels", str(tmp_path / "words.txt"), "--threshold", "0"]
    assert main(command) == 0
    lines = [json.loads(line) for line in (tmp_path / "o" / "annotations.jsonl").read_text().splitlines()]
    assert len(lines) == 72
    assert {label["label"] for label in lines[0]["labels"]} == {"star", "red", "<b>bold</b>"}
    texts = ["star: a shape with five points", "red", "<b>bold</b>"]
    found = aia_jax.load(model, labels=texts, threshold=0.0)([root / "images" / "0.png"])
    assert found.scores.shape == (1, 3)
    assert found.attention is None
    expected = [label["score"] for label in lines[0]["labels"]]
    np.testing.assert_allclose([score for _, score in found.labels[0]], expected, rtol=1e-4)


def test_the_page_ranks_the_photos_for_sentences_of_a_file(model, root, tmp_path, monkeypatch, capsys):
    queries, output = tmp_path / "queries.txt", tmp_path / "o"
    (tmp_path / "words.txt").write_text("star\nred\n")
    annotator = aia_jax.load(model, labels=tmp_path / "words.txt")
    monkeypatch.setattr(aia_jax, "load", lambda *_, **__: annotator)
    command = ["annotate", "--model", str(model), "--images", str(root / "images"), "--output", str(output)]
    command += ["--html", "--queries", str(queries)]
    for text, problem in (("\n \n", "has no query"), ("red\n\n🙂\n?\n", r"queries.txt:\n  line 3: .*\n  line 4: ")):
        queries.write_text(text)
        assert main(command) == 2
        assert re.search(problem, capsys.readouterr().err)
    assert not output.exists()
    queries.write_text("red  star\n\nRed star\na circle at night\n")
    assert main(command) == 0
    facts, photos = read_page(output / "gallery.html")
    assert [query for query, _ in facts["queries"]] == ["red star", "a circle at night"]
    monkeypatch.setattr(SentenceSearch, "compute", pytest.fail)
    monkeypatch.setattr(PhotoAnnotator, "annotate", pytest.fail)
    index = aia_jax.index(root / "images", model)  # reads no photo again
    for query, encoded in facts["queries"]:
        scores = dict(zip(photos, np.frombuffer(base64.b64decode(encoded), "<i2") / 1000, strict=True))
        found = {path.name: score for path, score in index.search(query, count=72)}
        assert scores == pytest.approx(found, abs=6e-4)
        assert np.ptp(list(scores.values())) > 0.1
    queries.write_text("a ring\n")
    assert main(command) == 0
    assert [query for query, _ in read_page(output / "gallery.html")[0]["queries"]] == ["a ring"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("dog\ncat\ndog: a pet\n", "repeats the name 'dog'"),
        ("dog\n🙂\n", "the label '🙂' has no known word"),
        ("", "no label"),
    ],
)
def test_words_that_cannot_be_labels_are_refused(model, root, tmp_path, capsys, words, problem):
    with pytest.raises(InputError, match=problem):
        aia_jax.load(model, labels=words.splitlines())
    (tmp_path / "words.txt").write_text(words)
    command = ["annotate", "--model", str(model), "--images", str(root / "images"), "--output", str(tmp_path / "o")]
    assert main([*command, "--labels", str(tmp_path / "words.txt")]) == 2
    assert problem in capsys.readouterr().err


def test_a_model_folder_searches_photos_as_its_run_does(model, workdir, root, tmp_path, capsys):
    outputs = []
    for source in (["--workdir", str(workdir)], ["--model", str(model)]):
        index = ["--images", str(root / "images"), "--index", str(tmp_path / "i")]
        assert main(["search", *source, *index, "red star", "--top", "5"]) == 0
        outputs.append(capsys.readouterr().out)
    assert "made by another model" in outputs[1]  # its numbers are float16
    found = aia_jax.index(root / "images", model).search("red star", count=5)
    assert [path.name for path, _ in found] == re.findall(r"[\w]+\.png", outputs[1])[:5]
    names = [re.findall(r"[\w]+\.png", output) for output in outputs]
    assert len(set(names[0]) & set(names[1])) >= 4


def test_photos_that_cannot_be_read_are_an_attribute_of_the_index(model, root, tmp_path):
    shutil.copy(root / "images" / "0.png", tmp_path)
    (tmp_path / "empty.png").touch()
    photos = aia_jax.index(tmp_path, model)
    assert (list(photos.names), photos.problems) == (["0.png"], {"empty.png": "the file is empty"})


def test_a_run_is_packaged_only_with_its_own_captions(workdir, root, model, tmp_path, capsys):
    reference = read_model_folder(model).arrays[open_vocabulary.REFERENCE]
    assert len(reference) == 48 + 12  # the validation split alone is small
    run = shutil.copytree(workdir, tmp_path / "run")
    other = shutil.copytree(root, tmp_path / "data")
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace(str(root), str(other)))
    lines = (other / "train.jsonl").read_text().splitlines()
    command = ["package", "--workdir", str(run), "--output", str(tmp_path / "model")]
    for change, problem in (
        (lambda path: path.write_text("\n".join(lines[:9])), "other captions"),
        (Path.unlink, "no cap"),
    ):
        change(other / "train.jsonl")
        assert main(command) == 2
        error = capsys.readouterr().err
        assert problem in error
        assert f"their new folder to data.root in {run / 'config.json'}" in error


def test_a_run_without_calibration_does_not_label_photos(workdir, root, tmp_path, capsys):
    command = ["annotate", "--workdir", str(workdir), "--images", str(root / "images"), "--output", str(tmp_path)]
    assert main(command) == 2
    assert "aia package" in capsys.readouterr().err


def calibration(about):
    return about["facts"]["open_vocabulary"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda about: about["facts"].pop("open_vocabulary"), "is damaged, or of another version"),
        (lambda about: calibration(about).pop("bias"), "'bias' is missing"),
        (lambda about: calibration(about).update(weights=[1, 2]), "`weights` must be three numbers"),
        (lambda about: calibration(about)["words"].append("dog"), "`words` must be a list of W words for arrays"),
        (lambda about: calibration(about).update(words="dog"), "`words` must be a list of W words for arrays"),
        (lambda about: about["config"]["model"].update(embed_size=7), "the weights do not fit the config"),
        (lambda about: about.update(packages=[1]), "is damaged: it lacks packages"),
    ],
)
def test_a_damaged_description_of_a_model_is_refused(model, root, tmp_path, capsys, change, problem):
    folder = shutil.copytree(model, tmp_path / "model")
    about = json.loads((folder / "config.json").read_text())
    change(about)
    (folder / "config.json").write_text(json.dumps(about))
    command = ["annotate", "--model", str(folder), "--images", str(root / "images"), "--output", str(tmp_path / "o")]
    assert main(command) == 2
    assert problem in capsys.readouterr().err


def test_a_model_of_another_kind_is_refused(model, root, tmp_path, capsys):
    assert main(["export", "--model", str(model), "--output", str(tmp_path / "e")]) == 2
    assert "a dual encoder, which cannot be exported; name an annotator" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"(?s)holds another model than this config.*config\.task"):
        load_arrays(model, demo.get_config(), {"head.b": (22,)}, {})
    with pytest.raises(InputError, match="labels photos, but cannot search them; name a dual encoder, such as open"):
        aia_jax.index(root / "images", "corel5k")
    for command in ("search", "annotate"):
        assert main([command, "--model", "", "--images", str(root / "images")]) == 2
        assert "'' is no path" in capsys.readouterr().err


def test_numbers_below_one_and_empty_paths_are_refused(model, root):
    for wrong in ({"top": 0}, {"batch_size": 0}, {"labels": ""}):
        with pytest.raises(InputError, match=r"must be at least 1, not 0|is no path"):
            aia_jax.load(model, **wrong)
    with pytest.raises(InputError, match="'' is no path"):
        aia_jax.index("", model)
    with pytest.raises(InputError, match="count must be at least 1, not -1"):
        aia_jax.index(root / "images", model).search("red star", count=-1)


def test_a_model_folder_is_evaluated_and_starts_a_run(model, root, tmp_path):
    fields = {"init_from": str(model), "init_backbone": "", "epochs": 2}
    metrics = evaluate(config(root, init_backbone=""), None, tmp_path / "e", weights=[str(model)])
    trainer_config = config(root, **fields)
    task = make_task(trainer_config)
    trainer = Trainer(trainer_config, task, tmp_path / "run", initialize=initializer(trainer_config, task))
    trainer.fit()
    first = next(json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert metrics["rsum"] > 200  # by chance: 170
    assert first["loss"] < 12
    task._pieces = [piece + 1 for piece in task._pieces]
    with pytest.raises(InputError, match=r"word pieces of other captions \((\d+) there, \1 here\)"):
        initializer(trainer_config, task)
    trainer_config.model.update({"embed_size": 16, "word_size": 8})
    with pytest.raises(InputError, match=r"(?s)config\.model\.embed_size: 32 there, 16 given.*word_size: 16 there, 8"):
        initializer(trainer_config, make_task(trainer_config))
