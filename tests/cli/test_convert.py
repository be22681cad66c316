"""convert_weights, config.init_from, config.init_backbone, eval --weights: from a PyTorch file to numbers and back."""

import json
import sys
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest

from aia_jax.cli.convert import convert, convert_back
from aia_jax.cli.main import main
from aia_jax.cli.train import train
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.evaluation.verify import verify
from aia_jax.models import backbones
from aia_jax.models.tresnet import TResNet
from aia_jax.tasks.registry import make_task
from aia_jax.training.model_arrays import flat_arrays
from aia_jax.training.runs import run_arrays
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError
from aia_jax.weights.initialization import initializer
from aia_jax.weights.load import PACKAGES, load_torch_file, pretrained_file
from aia_jax.weights.torch_archive import write_archive
from aia_jax.weights.torch_files import read_torch_file, write_torch_file
from tests.helpers.photos import make_photo
from tests.helpers.references import largest, needs_torch, reference, relative_error
from tests.helpers.small_annotator import VARIANT
from tests.helpers.torch_state_files import assert_same_arrays, builder, digest, plain, signed_state, wrapped
from tests.helpers.untrained import annotator_config, random_weights, write_config, write_run

LABELS = 22
HEAD = {"hidden_size": 16, "num_heads": 2, "feedforward_size": 16}


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    """A backbone `tresnet_small`."""
    with pytest.MonkeyPatch.context() as patch:
        entry = backbones.Backbone(partial(TResNet, VARIANT), "tresnet", None, 4)
        patch.setitem(backbones.BACKBONES, "tresnet_small", entry)
        yield


def small_config(**overrides):
    fields = {"epochs": 2, "batch_size": 8, "eval.batch_size": 16}
    fields |= {"data.num_train": 48, "data.num_test": 21, "data.validation_fraction": 0.25}
    fields |= {"model.backbone": "tresnet_small", "model.num_heads": 2}
    return annotator_config(**fields | overrides)


@pytest.fixture(scope="module")
def make_file(tmp_path_factory):
    """Writes a file; returns its path and its arrays by the names of timm >= 0.9."""

    @cache
    def make(system="annotator", generation="timm <= 0.6", num_labels=LABELS):
        build = builder(system, VARIANT, num_labels, **HEAD)
        state = signed_state(build, num_labels if system == "backbone" else 0)
        path = tmp_path_factory.mktemp("file") / "model.pth"
        write_archive(path, wrapped(state, generation))
        return path, plain(state)

    return make


def torch_scores(system, state, config):
    """Scores of the PyTorch model on the test split."""
    from tests.helpers.torch_oracles import build_torch_model, build_tresnet, load, torch

    model = load(build_torch_model(system, build_tresnet(VARIANT), LABELS, **HEAD), state).eval()
    task = make_task(config)
    images = np.asarray(task.normalize(np.asarray(task.split("test").images)))
    with torch.inference_mode():
        return {"scores": torch.sigmoid(model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))[0])}


def difference(path, expected):
    """The largest difference of the scores in a file from those of `torch_scores`."""
    return relative_error(np.load(path)["scores"], expected["scores"]) * largest(expected["scores"])


@pytest.mark.parametrize(("system", "head"), [("annotator", "attention"), ("classifier", "gap")])
def test_weights_from_pytorch_are_evaluated_in_float32(make_file, tmp_path, capsys, system, head):
    file, state = make_file(system)
    config = small_config(**{"model.head": head, "model.dtype": "bfloat16"})
    expected = reference(f"convert/{system}", lambda: torch_scores(system, state, config))
    out = tmp_path / "out"
    given = ["evaluate", f"--config={write_config(tmp_path / 'config.py', config)}", f"--output={out}"]
    sources = [f"--weights={file}"]
    if system == "annotator":
        convert(config, file, tmp_path / "run")
        sources += [f"--weights={tmp_path}/run", f"--workdir={tmp_path}/run"]
    for source in sources:
        assert main([*given, source]) == 0
        assert "computing in float32, for weights from PyTorch" in capsys.readouterr().out
        assert difference(out / "scores.npz", expected) <= 1e-6
        assert json.loads((out / "metrics.json").read_text())["rows"][0]["dtype"] == "float32"
    if system == "classifier":
        assert main([*given, *sources, "--config.model.dtype=bfloat16"]) == 0
        assert "computing in bfloat16, given on the command line" in capsys.readouterr().out
        assert 1e-5 < difference(out / "scores.npz", expected) <= 0.02


@pytest.mark.slow
def test_training_starts_from_converted_weights(make_file, tmp_path, capsys):
    file, _ = make_file()
    convert(small_config(), file, tmp_path / "run")
    train(small_config(), tmp_path / "run")
    assert "starting from the converted weights" in capsys.readouterr().out
    killed = tmp_path / "killed"
    (killed / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)  # of an earlier attempt, half written
    train(small_config(init_from=str(file)), killed)
    evaluate(small_config(), killed, killed / "again")  # though init_from is another path by now
    folders = tmp_path / "run" / "evaluation", killed / "evaluation", killed / "again"
    first, *others = (np.load(folder / "scores.npz")["scores"] for folder in folders)
    for scores in others:
        np.testing.assert_array_equal(scores, first)


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_backbone_is_loaded_and_the_dropped_classifier_is_named(make_file, tmp_path, capsys, as_folder):
    file, arrays = make_file("backbone", "MIIL", 7)
    source = file
    if as_folder:
        source = tmp_path / "backbone"
        convert(small_config(), file, source)
        with pytest.raises(InputError, match="holds a backbone alone; give it as config"):
            evaluate(small_config(), None, tmp_path / "out", weights=(str(source),))
    config = small_config(init_backbone=str(source))
    task = make_task(config)
    initialize = initializer(config, task)
    assert "head.fc.weight [7, 512], head.fc.bias [7]" in capsys.readouterr().out
    trainer = Trainer(config, task, tmp_path / "run", initialize=initialize)
    state, _ = trainer._first_state(SimpleNamespace(steps=list))
    kernel = arrays["body.layer4.0.conv3.conv.weight"].transpose(0, 2, 3, 1)
    for params in (state.weights("raw")["params"], state.weights("ema")["params"]):
        np.testing.assert_array_equal(params["backbone"]["stages"][3][0]["conv3"]["conv"]["kernel"], kernel)


def test_a_run_converts_to_pytorch(tmp_path):
    config = small_config()
    run = write_run(tmp_path / "run", config, random_weights(make_task(config)))
    evaluate(config, run, tmp_path / "out")
    convert_back(config, run, tmp_path / "mine.pth")
    state, *_ = read_torch_file(tmp_path / "mine.pth")
    expected = reference("convert/run", lambda: torch_scores("annotator", state, config))
    assert difference(tmp_path / "out" / "scores.npz", expected) <= 1e-5
    convert_back(config, run, tmp_path / "body.safetensors", backbone_only=True)
    body, *_ = read_torch_file(tmp_path / "body.safetensors")

    def compute():
        from tests.helpers.torch_oracles import arrays_of, build_tresnet, load

        return {"digest": digest(arrays_of(load(build_tresnet(VARIANT), body)))}

    assert relative_error(digest(body), reference("convert/names", compute)["digest"]) == 0


def test_converting_there_and_back_keeps_all_bits(make_file, tmp_path):
    file, state = make_file(generation="timm >= 0.9")
    convert(small_config(), file, tmp_path / "run")
    for name in ("back.pth", "back.SafeTensors"):
        convert_back(small_config(), tmp_path / "run", tmp_path / name)
        assert_same_arrays(read_torch_file(tmp_path / name)[0], state)
    assert (tmp_path / "back.SafeTensors").read_bytes()[8:9] == b"{"
    with pytest.raises(InputError, match=r"a\.onnx: with --reverse, the name of --output must end with \.pth or \.saf"):
        convert_back(small_config(), tmp_path / "run", tmp_path / "a.onnx")


def equal_metrics(shown):
    """Returns the printed metrics after a check that both frameworks have the same."""
    rows = {line.split()[0]: line.split()[-5:] for line in shown.splitlines() if line}
    assert rows["JAX"] == rows["PyTorch"]  # P, R, F1 to 4 decimals, N+, mAP in per cent to 2
    assert [float(number) for number in rows["difference"]] == pytest.approx([0] * 5, abs=5e-5)
    return [float(number) for number in rows["PyTorch"]]


@needs_torch
def test_verification_passes_and_compares_metrics(make_file, capsys):
    file, _ = make_file()
    assert verify(small_config(), file, split="test")
    shown = capsys.readouterr().out
    for stage in ("stem", "stage1", "stage4", "projection", "attention", "logits", "passed"):
        assert stage in shown
    equal_metrics(shown)


@needs_torch
@pytest.mark.slow
def test_metrics_on_the_real_test_split_are_equal_in_both_frameworks(make_file, corel5k_root, capsys):
    file, _ = make_file(num_labels=260)
    config = small_config(**{"data.name": "corel5k", "data.image_size": 64, "eval.batch_size": 64})
    config.data.root = str(corel5k_root)
    assert verify(config, file, split="test")
    assert all(metric > 0 for metric in equal_metrics(capsys.readouterr().out))


@needs_torch
@pytest.mark.parametrize("system", ["classifier", "backbone", "bare body"])
def test_other_systems_verify_too(make_file, tmp_path, system, capsys):
    file, state = make_file("classifier", "MIIL") if system == "classifier" else make_file("backbone", "MIIL", 7)
    if system == "bare body":
        file = tmp_path / "body.pth"
        write_torch_file(file, {n.removeprefix("body."): value for n, value in state.items() if n.startswith("body.")})
    assert verify(small_config(**{"model.head": "gap"}), file)
    assert ("logits" in capsys.readouterr().out) == (system == "classifier")


@needs_torch
def test_verification_fails_past_the_tolerance(make_file, monkeypatch, capsys):
    from tests.helpers.torch_oracles import torch_models

    file, _ = make_file()
    assert not verify(small_config(), file, tolerance=0.0)
    load = torch_models.load_torch
    for change in (
        lambda body: body.layer3[0].conv1.conv.weight.data.mul_(1.001),
        lambda body: body.layer4[0].conv2.bn.running_var.fill_(float("nan")),
    ):

        def changed(*args, change=change):
            model = load(*args)
            change(model.body)
            return model

        monkeypatch.setattr(torch_models, "load_torch", changed)
        assert not verify(small_config(), file)
        assert "FAILED" in capsys.readouterr().out


@needs_torch
def test_verification_takes_a_folder_of_images(make_file, tmp_path):
    file, _ = make_file()
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(InputError, match="photos has no photos"):
        verify(small_config(), file, images=str(folder))
    make_photo(folder / "a.jpg")
    assert verify(small_config(), file, images=str(folder))
    (folder / "b.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"b\.jpg: not an image"):
        verify(small_config(), file, images=str(folder))


def test_thresholds_are_fitted_saved_and_applied(make_file, tmp_path, capsys):
    file, _ = make_file("classifier")
    config = small_config(**{"model.head": "gap"})
    convert(config, file, tmp_path / "run")
    for kind, output in (("mcc", tmp_path / "elsewhere"), ("exact", tmp_path / "run" / "evaluation")):
        evaluate(config, tmp_path / "run", output, thresholds=kind)
        rows = json.loads((output / "metrics.json").read_text())["rows"]
        assert [row["threshold"] for row in rows] == [0.5, "per label"]
    saved = tmp_path / "run" / "thresholds.json"
    assert (tmp_path / "elsewhere" / "thresholds.json").exists()
    assert len(json.loads(saved.read_text())) == LABELS
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'elsewhere' / 'thresholds.json'}; aia annotate and aia export use it only with" in shown
    assert f"{saved}; aia annotate and aia export use it from now on" in shown
    evaluate(config, None, tmp_path / "file", weights=(str(file),), thresholds=str(saved))
    again = json.loads((tmp_path / "file" / "metrics.json").read_text())["rows"]
    assert again[1]["f1"] == pytest.approx(rows[1]["f1"])
    assert "thresholds.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("system", "overrides", "num_labels", "message"),
    [
        ("annotator", {}, 30, "scores 30 labels, but the data of this config, or --labels, list 22"),
        (
            "classifier",
            {"model.head": "gap"},
            21,
            "scores 21 labels, but the data of this config, or --labels, list 22",
        ),
        ("classifier", {}, 22, r"holds a classifier .* but config\.model\.head is 'attention'"),
        ("annotator", {"model.head": "gap"}, 22, r"holds a whole annotator .* but config\.model\.head is 'gap'"),
        ("annotator", {"model.backbone": "efficientnet_lite0"}, 22, r"config\.model\.backbone is efficientnet_lite0"),
        ("annotator", {"model.hidden_size": 32}, 22, r"head\.w: other shape: \[1, 22, 16\] in the file, \[1, 22, 32\]"),
        ("annotator", {"model.backbone": "tresnet_m"}, 22, "missing: backbone.features.0.layer1.1.conv1.conv.weight"),
    ],
)
def test_files_of_another_model_are_refused(make_file, tmp_path, system, overrides, num_labels, message):
    file, _ = make_file(system, num_labels=num_labels)
    config = small_config(**overrides)
    for use in (
        lambda: convert(config, file, tmp_path / "run"),
        lambda: evaluate(config, None, tmp_path / "out", weights=(str(file),)),
        lambda: train(small_config(**overrides, init_from=str(file)), tmp_path / "train"),
    ):
        with pytest.raises(InputError, match=message):
            use()
    assert not (tmp_path / "run").exists()


def test_checkpoints_of_training_programs_are_converted_and_trained_from(make_file, tmp_path, capsys):
    file, state = make_file(generation="timm >= 0.9")
    task, folder, names = make_task(small_config()), tmp_path / "checkpoint-9", sorted(state)
    _, expected = load_torch_file(file, task)
    noise = {name: value + np.float32(1) if value.dtype.kind == "f" else value for name, value in state.items()}
    average = {f"module.model.{name}": value for name, value in state.items()} | {"criterion.weight": np.ones(1, "f")}
    write_archive(tmp_path / "a.ckpt", {"state_dict": noise, "state_dict_ema": average, "epoch": 3})
    for number in (1, 2):
        part = {f"_orig_mod.{name}": state[name] for name in names[number - 1 :: 2]}
        write_torch_file(folder / f"model-0000{number}-of-00002.safetensors", part)
    files = {f"_orig_mod.{name}": f"model-0000{1 + row % 2}-of-00002.safetensors" for row, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file; --output names a folder, or with --reverse the file to writ"):
        convert(small_config(), folder, tmp_path / "file")
    convert(small_config(), folder, tmp_path / "run")
    assert_same_arrays({path: np.asarray(value) for path, value in run_arrays(tmp_path / "run")[0].items()}, expected)
    config = small_config(init_from=str(tmp_path / "a.ckpt"))
    weights = flat_arrays(initializer(config, task)(random_weights(task)))
    assert "average state_dict_ema.model is taken" in capsys.readouterr().out
    config.weights_key = "state_dict"
    others = flat_arrays(initializer(config, task)(random_weights(task)))
    for path, value in expected.items():
        np.testing.assert_array_equal(weights[path], value)
        np.testing.assert_array_equal(others[path], value + np.float32(1))


def test_misfits_of_a_converted_checkpoint_are_refused(make_file, tmp_path):
    converted = tmp_path / "run"
    convert(small_config(), make_file()[0], converted)
    out, wider = tmp_path / "out", small_config(**{"model.hidden_size": 32})
    with pytest.raises(InputError, match="run holds checkpoints already; give another --output"):
        convert(small_config(), make_file()[0], converted)
    with pytest.raises(InputError, match=r"head\.weight: \(22, 16\) there, \(22, 32\) in the model"):
        evaluate(wider, None, out, weights=(str(converted),))
    with pytest.raises(InputError, match="holds weights of another model"):
        convert_back(wider, converted, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"config\.model\.num_heads: 2 there, 4 given"):
        evaluate(small_config(**{"model.num_heads": 4}), None, out, weights=(str(converted),))
    with pytest.raises(InputError, match=r"config\.model\.backbone: tresnet_small there, tresnet_tiny given"):
        train(small_config(**{"model.backbone": "tresnet_tiny", "init_backbone": str(converted)}), out)
    task = make_task(small_config())
    task._vocabulary = task.labels[::-1]
    with pytest.raises(InputError, match="trained on other labels, or on another order of them"):
        initializer(small_config(init_from=str(converted)), task)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(PACKAGES, "efficientnet_lite2", "no-such-package-anywhere")
    with pytest.raises(InputError, match=r"not installed: pip install no-such-package-anywhere$"):
        pretrained_file("efficientnet_lite2")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_conversion_needs_no_torch_in_both_directions(make_file, tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "torch", None)
    write_torch_file(tmp_path / f"a{suffix}", read_torch_file(make_file()[0])[0])
    convert(small_config(), tmp_path / f"a{suffix}", tmp_path / "run")
    convert_back(small_config(), tmp_path / "run", tmp_path / f"back{suffix}")


def test_verification_without_torch_names_the_packages(make_file, monkeypatch):
    for name in ("torch", "aia_jax.weights.torch_annotator"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"verifying needs more packages .*: pip install .*torch"):
        verify(small_config(), make_file()[0])
