"""`aia package`, `aia models` and `--model`: from a run to a model folder, and every command that takes the folder."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import aia_jax
from aia_jax.cli import package
from aia_jax.cli.main import main
from aia_jax.configs import custom
from aia_jax.data import scenes
from aia_jax.tasks.registry import make_task
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.training.model_arrays import flat_arrays
from aia_jax.training.runs import record_command
from aia_jax.utils import model_folders
from aia_jax.utils.errors import InputError
from aia_jax.utils.model_folders import find_model
from aia_jax.weights.initialization import initializer
from tests.helpers.untrained import annotator_config, random_weights, write_config


@pytest.fixture(scope="module")
def run_folder(annotator, config, tmp_path_factory):
    """A run with results and thresholds for each label."""
    workdir = shutil.copytree(annotator, tmp_path_factory.mktemp("runs") / "run")
    record_command(workdir, ["aia", "train", "--config", "demo", "--config.data.root=/home/me", "--config.epochs=1"])
    rows = [{"name": "best epoch (1, raw)", "f1": 0.25}, {"name": "MCC thresholds", "f1": 0.375}]
    rows = [{"epoch": 1, "weights": "raw", "num_images": 20, "map": 12.5, **row} for row in rows]
    rows.append({**rows[0], "epoch": 2, "f1": 1.0})  # another epoch
    (workdir / "evaluation").mkdir()
    metrics = {"task": "annotation", "split": "test", "num_labels": 22, **rows[0], "rows": rows}
    (workdir / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    (workdir / "thresholds.json").write_text(json.dumps(dict.fromkeys(scenes.LABELS, 0.5)))
    return workdir


@pytest.fixture(scope="module")
def packaged(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    flags = ["--data_licence", "free of rights", "--limits", "It knows no photos.", "--dtype", "float32"]
    assert main(["package", "--workdir", str(run_folder), "--output", str(folder), *flags]) == 0
    return folder


@pytest.fixture
def shipped(packaged, tmp_path, monkeypatch):
    """`packaged` as the shipped model `small`. Each test is in an empty folder."""
    shutil.copytree(packaged, tmp_path / "shipped" / "small")
    monkeypatch.setattr(model_folders, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "shipped" / "small"


def test_a_card_says_what_people_need(packaged):
    assert sorted(path.name for path in packaged.iterdir()) == sorted(model_folders.FILES)
    card = (packaged / "README.md").read_text()
    for text in (
        "---\nlibrary_name: aia_jax\n",
        "\n# small\n\nLabels photos with 22 labels: attention pooling on tresnet_tiny.\n",
        "    aia annotate --model small --images photos --output annotated --html\n",
        "\n22 labels: circle, ring, ",
        "Data: scenes, 40 training photos, of which 10% chose the epoch. Licence of the data: free of rights.",
        "    aia train --config demo --config.epochs=1 --workdir runs/NAME\n",
        "20 photos of the test split:",
        "| best epoch (1, raw) |  |  | 0.250 |  | 12.5 |\n| MCC thresholds |  |  | 0.375 |  | 12.5 |\n\n## Limits",
        "It knows only what its training photos show, with the 22 labels above. It knows no photos.",
        "- `model.safetensors`: ",
    ):
        assert text in card
    assert "/home" not in card + (packaged / "config.json").read_text()


def test_a_packaged_run_gives_the_same_scores_everywhere(config, run_folder, packaged, shipped, tmp_path):
    pixels = make_task(config).split("test").images[:]
    expected = aia_jax.load(run_folder, batch_size=8)(pixels)
    for source in (packaged, "small"):
        found = aia_jax.load(source, batch_size=8)(pixels)
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert found.labels == expected.labels
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(pixels[:3]):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    given = ["--model", "small", "--images", str(tmp_path / "photos"), "--batch_size", "8"]
    assert main(["annotate", *given, "--output", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "annotations.jsonl").read_text().splitlines()
    labels = [[(label["label"], label["score"]) for label in json.loads(line)["labels"]] for line in lines]
    assert labels == [list(map(tuple, found)) for found in expected.labels[:3]]
    assert main(["export", "--model", str(packaged), "--output", str(tmp_path / "exported")]) == 0
    facts = json.loads((tmp_path / "exported" / "model.json").read_text())
    assert facts["thresholds"] == [0.5] * 22


def test_a_model_is_evaluated_and_starts_runs(config, run_folder, packaged, shipped, tmp_path, capsys):
    path = write_config(tmp_path / "own.py", config)
    flags = ["--config", str(path), "--model", "small"]
    assert main(["evaluate", *flags]) == 2
    assert "--weights FILE needs --output, a folder for the results; so does a model folder" in capsys.readouterr().err
    assert main(["evaluate", *flags, "--output", "out", "--thresholds", str(packaged / "thresholds.json")]) == 0
    assert "computing in float32, config.model.dtype" in capsys.readouterr().out
    scores = np.load("out/scores.npz", allow_pickle=False)["scores"]
    expected = aia_jax.load(run_folder, batch_size=8)(make_task(config).split("test").images[:]).scores
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)

    there = flat_arrays(random_weights(make_task(config)))
    for source in ("small", str(packaged)):
        config = custom.get_config(source)
        assert (config.init_from, config.init_labels) == (source, "by_name")
        assert config.model.hidden_size == 16
        own = annotator_config(init_from=source, **{"model.param_dtype": "bfloat16"})
        task = make_task(own)
        weights = random_weights(make_task(annotator_config(**{"model.param_dtype": "bfloat16"})), seed=1)
        found = flat_arrays(initializer(own, task)(weights))
        for name, value in there.items():
            assert found[name].dtype == flat_arrays(weights)[name].dtype
            np.testing.assert_array_equal(found[name], np.asarray(value, found[name].dtype))


def test_labels_of_a_model_keep_their_weights_in_other_vocabularies(packaged, capsys):
    config = annotator_config(init_from=str(packaged), init_labels="by_name")
    task = make_task(config)
    task._vocabulary = ("new", *scenes.LABELS[:2])
    random = jax.tree.map(jnp.asarray, random_weights(task, seed=1))
    found = flat_arrays(initializer(config, task)(random))
    there = TrainedAnnotator.from_run(packaged, 8, fold=False).arrays()
    np.testing.assert_array_equal(found["head.weight"][1:], there["head.weight"][:2])
    np.testing.assert_array_equal(found["head.weight"][0], flat_arrays(random)["head.weight"][0])
    assert "2 of 3 labels known" in capsys.readouterr().out


def test_weights_of_other_models_are_refused(packaged, tmp_path):
    config = annotator_config(init_from=str(packaged))
    config.model.norm_first = False
    with pytest.raises(InputError, match=r"small holds another model than this config:\n .*norm_first: True there"):
        initializer(config, make_task(config))


def test_a_folder_wins_over_a_name_and_unknown_names_get_hints(shipped, failing):
    for command in (["annotate", "--images", "photos", "--output", "out"], ["export", "--output", "out"]):
        error = failing(*command, "--model", "smal")
        assert (
            "smal does not exist; name the folder of a model or a run, a file of weights, or a shipped model" in error
        )
        assert "a shipped model, nearest: small (`aia models` lists them)" in error
    assert find_model("small") == shipped
    shutil.copytree(shipped, "small")
    assert str(find_model("small")) == "small"
    with pytest.raises(InputError, match="nowhere does not exist"):
        aia_jax.load("nowhere")
    assert "--config belongs to --weights" in failing(
        "export", "--output", "out", "--model", "small", "--config", "demo"
    )


def test_models_are_listed_with_results_and_sizes(shipped, run_folder, tmp_path, capsys):
    assert main(["models"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("small: 22 labels; F1 0.375, mAP 12.5 on test; ")
    assert second == "  Labels photos with 22 labels: attention pooling on tresnet_tiny."
    assert last == f"The shipped models are in {tmp_path / 'shipped'}."
    shutil.copytree(run_folder, "runs/a")
    shutil.copytree(shipped, "runs/b")
    (tmp_path / "here" / "runs" / "b" / "labels.json").write_text("[]")
    assert main(["models", "--folder", "runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].startswith("runs/a: 22 labels; F1 0.250, mAP 12.5 on test; ")
    assert lines[5] == "  run of annotation on scenes: tresnet_tiny, attention"
    assert lines[6] == "runs/b: runs/b/labels.json is damaged: its SHA-256 is not that in config.json; copy it again"
    assert main(["models", "--folder", "runs/b/none"]) == 2
    assert "--folder runs/b/none is no folder" in capsys.readouterr().err


def test_a_model_without_thresholds_replaces_one_with_thresholds(run_folder, packaged, failing, tmp_path):
    target = shutil.copytree(packaged, tmp_path / "model")
    given = ["package", "--workdir", str(run_folder), "--output"]
    assert "model.safetensors is there already; --force replaces it" in failing(*given, str(target))
    assert f"--output {run_folder} is the folder of a run" in failing(*given, str(run_folder), "--force")
    assert main([*given, str(target), "--force", "--threshold", "0.125"]) == 0
    assert not (target / "thresholds.json").exists()
    assert aia_jax.load(target).settings["thresholds"] == [0.125] * 22
    again = tmp_path / "again"  # a packaged model may be packaged again
    assert main(["package", "--model", str(packaged), "--output", str(again), "--name", "other"]) == 0
    about, before = (json.loads((folder / "config.json").read_text()) for folder in (again, packaged))
    assert about == before | {"name": "other", "dtype": "float16", "files": about["files"]}


def test_training_records_its_command(annotator, tmp_path, monkeypatch):
    workdir = shutil.copytree(annotator, tmp_path / "run")
    monkeypatch.setattr("aia_jax.cli.train.train", lambda config, workdir, share: None)
    assert (
        main(["train", "--config", "demo", "--config.data.root", "x y", "--config.epochs=2", "--workdir", str(workdir)])
        == 0
    )
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["command"] == ["aia", "train", "--config", "demo", "--config.data.root=x y", "--config.epochs=2"]
    assert "jax" in environment["packages"]
    assert package._command(workdir) == {"command": "aia train --config demo --config.epochs=2 --workdir runs/NAME"}


def test_results_of_training_stand_in_for_those_of_an_evaluation(config, annotator, tmp_path):
    assert package._measured(annotator, config, with_thresholds=False) == {}
    assert main(["package", "--workdir", str(annotator), "--output", str(tmp_path / "model")]) == 0
    assert "## Results" not in (tmp_path / "model" / "README.md").read_text()
