"""`aia export`: files that give the model's scores, and need nothing of this project."""

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax import export
from PIL import Image

import aia_jax
from aia_jax.cli import export as command
from aia_jax.cli.convert import convert_back
from aia_jax.cli.main import main
from aia_jax.data import scenes
from aia_jax.inference import export as exporter
from aia_jax.inference.export import load_stablehlo
from aia_jax.tasks.registry import make_task
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from tests.helpers.photos import TURNED
from tests.helpers.references import HAS_TORCH
from tests.helpers.untrained import annotator_config, random_weights, write_run

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE = 32
RUN = ("--workdir", "run")
NAMES = ["model.json", "model.onnx", "model.stablehlo"]
HAS_ONNX = HAS_TORCH and all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnxscript"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="ONNX needs more packages: pip install -e '.[onnx]'")


@pytest.fixture(scope="module")
def live(annotator):
    return aia_jax.load(annotator, batch_size=8)


@pytest.fixture(scope="module")
def images():
    return np.stack([scenes.draw(3, number, SIZE).image for number in range(5)])


@pytest.fixture(scope="module")
def limits(live, images, tmp_path_factory):
    """Thresholds that some scores exceed."""
    path = tmp_path_factory.mktemp("limits") / "thresholds.json"
    medians = np.median(live(images).scores, axis=0)
    path.write_text(json.dumps(dict(zip(live.labels, medians.tolist(), strict=True))))
    return path


@pytest.fixture(scope="module")
def exported(annotator, limits, tmp_path_factory):
    """A folder of both files, or without the packages for ONNX of the other one."""
    if HAS_ONNX:
        importlib.import_module("tests.helpers.torch_oracles")  # timm where torchvision is not whole
    output = tmp_path_factory.mktemp("out") / "exported"
    flags = ["--format", "both" if HAS_ONNX else "stablehlo", "--attention", "--thresholds", str(limits)]
    assert main(["export", "--workdir", str(annotator), "--output", str(output), *flags]) == 0
    return output


@pytest.fixture
def run(annotator, tmp_path):
    def run(*flags, model=("--workdir", str(annotator))):
        return main(["export", *model, "--output", str(tmp_path / "out"), *flags])

    return run


@pytest.mark.parametrize(
    ("file", "count"),
    [("model.stablehlo", 1), *(pytest.param("model.onnx", count, marks=needs_onnx) for count in (1, 3))],
)
def test_scores_and_attention_are_the_models(exported, live, images, file, count):
    onnx = file == "model.onnx"
    load = importlib.import_module("aia_jax.inference.onnx_model").load_onnx if onnx else load_stablehlo
    expected, found = live(images[:count]), load((exported / file).read_bytes())(images[:count])
    assert set(found) == {"scores", "attention"}
    for name, rows in found.items():
        np.testing.assert_allclose(rows, getattr(expected, name), rtol=0, atol=1e-5)
    assert np.ptp(expected.scores) > 0.01


def test_the_facts_describe_the_model(exported, live, limits, annotator):
    facts = json.loads((exported / "model.json").read_text())
    assert facts["labels"] == list(live.labels)
    assert dict(zip(facts["labels"], facts["thresholds"], strict=True)) == json.loads(limits.read_text())
    assert facts["inputs"] == [{"name": "image", "dtype": "uint8", "shape": ["any", SIZE, SIZE, 3]}]
    shapes = {"scores": ["any", 22], "attention": ["any", 22, 2, 2]}
    assert facts["outputs"] == [{"name": n, "dtype": "float32", "shape": shape} for n, shape in shapes.items()]
    assert facts["normalization"]["mean"] == list(TrainedAnnotator.from_run(annotator, 8).channel_stats[0])
    names = [name for name in NAMES if HAS_ONNX or name != "model.onnx"]
    assert sorted([*facts["files"], "model.json"]) == sorted(path.name for path in exported.iterdir()) == names
    for name, report in facts["files"].items():
        assert report["bytes"] == (exported / name).stat().st_size
        assert 0 <= max(report["max_difference"].values()) < 1e-5
    file = export.deserialize(bytearray((exported / "model.stablehlo").read_bytes()))
    assert (file.platforms, file.nr_devices) == (("cpu", "cuda", "tpu"), 1)


def test_exported_files_have_no_paths_of_this_machine(exported):
    for path in exported.iterdir():
        content = path.read_bytes()
        assert b".py" not in content.replace(b".pytest_", b"")  # a function's name, in a test's worker process
        assert str(REPOSITORY).encode() not in content


def test_the_example_runs_as_written_without_this_project(exported, live, limits, annotator, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert command.EXAMPLE in capsys.readouterr().out
    assert command.EXAMPLE in (REPOSITORY / "docs/export.md").read_text()
    shutil.copytree(exported, tmp_path / "exported")
    pixels = np.kron(scenes.draw(4, 1, 40).image[:, :30], np.ones((3, 3, 1), np.uint8))
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=TURNED)
    Image.fromarray(scenes.draw(4, 2, 50).image[..., 0]).save(tmp_path / "grey.png")
    names = ["turned.jpg", "grey.png"]
    blocked = "import sys; sys.modules.update(aia_jax=None, flax=None, torch=None)\n"
    command_line = [sys.executable, "-c", blocked + command.EXAMPLE, *names]
    ran = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = aia_jax.load(annotator, threshold=limits, batch_size=8)([tmp_path / name for name in names])
    in_order = [sorted((label for label, _ in labels), key=live.labels.index) for labels in found.labels]
    assert ran.stdout == "".join(f"{name} {labels}\n" for name, labels in zip(names, in_order, strict=True))
    assert all(0 < len(labels) < 22 for labels in in_order)


def test_a_fixed_batch_in_bfloat16_for_one_platform(run, tmp_path, capsys):
    assert run("--batch", "3", "--dtype", "bfloat16", "--platforms", "cpu") == 0
    file = export.deserialize(bytearray((tmp_path / "out" / "model.stablehlo").read_bytes()))
    assert (file.in_avals[0].shape, file.platforms) == ((3, SIZE, SIZE, 3), ("cpu",))
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (facts["model"]["dtype"], facts["outputs"][0]["shape"]) == ("bfloat16", [3, 22])
    assert facts["files"]["model.stablehlo"]["max_difference"]["scores"] < 1e-2
    assert " s; largest difference from the model: scores " in capsys.readouterr().out


def test_a_file_that_does_not_give_the_models_scores_is_refused(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TrainedAnnotator, "predict", lambda self, images, explain: {"scores": np.zeros((8, 22))})
    for number in (0.3, float("nan")):
        found = {"scores": np.full((4, 22), number)}
        monkeypatch.setattr(exporter, "load_stablehlo", lambda content, found=found: lambda images: found)
        assert run() == 2
        report = f"nothing was written: the file differs from the model in scores by {number}, more than 0.0001; the"
        assert report in capsys.readouterr().err
        assert list((tmp_path / "out").iterdir()) == []


def test_a_file_for_other_platforms_is_not_run_and_replaces_another_with_force(run, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    for name in NAMES:
        (output / name).write_bytes(b"old")
    assert run("--platforms", "tpu") == 2
    assert f"{output}/model.stablehlo is there already; --force replaces it" in capsys.readouterr().err
    assert run("--platforms", "tpu,cuda", "--batch", "2", "--dtype", "bfloat16", "--force") == 0
    assert " s, not run: this machine has none of tpu, cuda" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == ["model.json", "model.stablehlo"]
    facts = json.loads((output / "model.json").read_text())
    assert facts["labels"] == list(scenes.LABELS)
    report = facts["files"]["model.stablehlo"]
    assert (report["platforms"], report["max_difference"]) == (["tpu", "cuda"], None)


def test_a_file_of_weights_is_exported_as_the_run_is(run, annotator, config, tmp_path, exported):
    file = tmp_path / "model.safetensors"
    convert_back(config, annotator, file)
    model = ["--weights", str(file), "--config", f"{REPOSITORY}/configs/demo.py"]
    model += [f"--config.model.{name}=16" for name in ("hidden_size", "feedforward_size")]
    assert run("--threshold", "0.25", "--platforms", "tpu", f"--config.data.image_size={SIZE}", model=model) == 0
    facts, others = (json.loads((folder / "model.json").read_text()) for folder in (tmp_path / "out", exported))
    assert facts["thresholds"] == [0.25] * 22
    for name in ("weights_digest", "labels", "model", "normalization", "preparation"):
        assert facts[name] == others[name]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [*RUN, "--format", "onnx", "--dtype", "bfloat16"],
            "is written in float32; leave out --dtype bfloat16, or --format",
        ),
        ([*RUN, "--platforms", "cpu,gpu"], "unknown platform 'gpu'; known: cpu, cuda, rocm, tpu"),
        ([*RUN, "--batch", "some"], "argument --batch: must be a whole number, not 'some'"),
        (["--workdir", "search"], "search holds a run of config.task='search'; name one of annotation"),
        (["--weights", "x.pth", "--config", f"{REPOSITORY}/configs/sgraf.py"], "task='retrieval' is no annotator"),
        (["--workdir", "young"], "holds no evaluated epoch yet; let aia train finish one"),
        (
            ["--workdir", "nowhere"],
            "nowhere does not exist; name the folder of a model or a run, a file of weights, or a shipped",
        ),
        (["--workdir", "gap"], "--attention: the head of this model, config.model.head='gap', has no attention"),
    ],
)
def test_flags_and_models_that_cannot_be_used_are_refused(
    run, annotator, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(annotator)
    Path("search").mkdir()
    Path("search/config.json").write_text(json.dumps({"task": "search", "model": {}}))
    Path("young/checkpoints").mkdir(parents=True)
    shutil.copy(annotator / "config.json", "young")
    if "gap" in flags:
        config = annotator_config(**{"model.head": "gap"})
        write_run(Path("gap"), config, random_weights(make_task(config)))
    assert run("--attention", model=flags) == 2
    assert message in capsys.readouterr().err


def test_onnx_without_its_packages_names_them(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "aia_jax.inference.onnx_model", raising=False)
    assert run("--format", "onnx") == 2
    assert "pip install 'onnxruntime>=1.20' 'onnxscript>=0.5'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run("--format", "both") == 2
    assert "error: model.onnx was not written, the files above were: ONNX needs more" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.stablehlo").exists()
