"""`aia features`: the rows are the feature maps of the backbone in the requested order; failures leave no files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from aia_jax.cli.main import main
from aia_jax.data import scenes
from aia_jax.data.image_decoding import decode_image
from aia_jax.tasks.registry import make_task
from aia_jax.training.model_arrays import flat_arrays, merge_model, split_model
from aia_jax.weights import name_map
from aia_jax.weights.torch_files import write_torch_file
from tests.helpers.untrained import annotator_config, random_weights
from tests.helpers.xla_flags import xla_flags

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE = 64
NUM_PHOTOS = 11
OVERRIDES = [f"--config.data.image_size={SIZE}", "--config.model.dtype=float32", "--config.data.num_workers=0"]


@pytest.fixture(scope="module")
def model():
    """The task, the structure and random weights of an annotator."""
    task = make_task(annotator_config(**{"data.image_size": SIZE, "model.dtype": "float32"}))
    graphdef, _ = split_model(nnx.eval_shape(lambda: task.build_model(nnx.Rngs(0))))
    return task, graphdef, random_weights(task)


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """A file of its backbone."""
    arrays = {path: array for path, array in flat_arrays(model[2]).items() if path.startswith("backbone.")}
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_torch_file(path, name_map.to_torch(arrays, system="backbone", family="tresnet"))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of another size than the network's input, in two folders, and other files."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "b").mkdir()
    (folder / ".trash").mkdir()
    for index in range(NUM_PHOTOS):
        name = f"b/{index:02d}.PNG" if index % 2 else f"{index:02d}.png"
        Image.fromarray(scenes.draw(0, index, 80).image).crop((0, 0, 80, 70)).save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    (folder / ".trash" / "x.png").write_text("hidden")
    (folder / "._00.png").write_text("hidden")
    return folder


@pytest.fixture
def features(weights, photos, tmp_path):
    """The command line. A later flag replaces an earlier one of the same name."""
    files = [f"--config={REPOSITORY}/configs/demo.py", f"--weights={weights}", f"--images={photos}"]
    return ["features", *files, f"--output={tmp_path}/out/x_ims.npy", "--batch_size=8", *OVERRIDES]


def assert_maps(rows, model, paths):
    """Compares rows with the maps that the backbone itself computes."""
    task, graphdef, weights = model
    images = task.normalize(np.stack([decode_image(path.read_bytes(), SIZE) for path in paths]))
    maps = jax.jit(lambda weights, x: merge_model(graphdef, weights).backbone(x, train=False)[0])(weights, images)
    maps = np.asarray(maps).reshape(len(paths), -1, maps.shape[-1])
    assert rows.shape == maps.shape
    np.testing.assert_allclose(rows, maps, rtol=0, atol=1e-6 * np.abs(maps).max())


def test_rows_are_the_maps_of_the_backbone(features, model, photos, tmp_path, capsys):
    assert main(features) == 0
    out = capsys.readouterr().out
    rows = np.load(tmp_path / "out" / "x_ims.npy")
    assert rows.dtype == np.float32
    names = [f"{index:02}.png" for index in range(0, NUM_PHOTOS, 2)]
    names += [f"b/{index:02}.PNG" for index in range(1, NUM_PHOTOS, 2)]
    assert_maps(rows, model, [photos / name for name in names])
    assert np.abs(rows).max(axis=(1, 2)).min() > 0
    facts = json.loads((tmp_path / "out" / "x_ims.json").read_text())
    assert facts["images"] == names
    assert facts["grid"] == [4, 4]
    assert (facts["backbone"], facts["image_size"], facts["dtype"]) == ("tresnet_tiny", SIZE, "float32")
    assert len(facts["weights"]["digest"]) == 12
    assert "not the region features of the bottom-up-attention detector" in facts["statement"]
    assert facts["statement"] in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x_ims.json", "x_ims.npy"]


def test_a_list_gives_the_order_and_may_repeat(features, model, photos, tmp_path):
    names = ["b/03.PNG", "00.png", "b/03.PNG", "b/01.PNG"]
    (tmp_path / "list.txt").write_text("\ufeff" + "\r\n".join(names) + "\n\n", encoding="utf-8")
    assert main([*features, f"--list={tmp_path}/list.txt", "--batch_size=3", "--config.data.num_workers=1"]) == 0
    rows = np.load(tmp_path / "out" / "x_ims.npy")
    assert_maps(rows, model, [photos / name for name in names])
    assert json.loads((tmp_path / "out" / "x_ims.json").read_text())["images"] == names


def test_an_output_is_replaced_only_by_force(features, tmp_path, failing):
    assert main(features) == 0
    output = tmp_path / "out" / "x_ims.npy"
    before = np.load(output)
    assert f"{output} is there already; --force replaces it" in failing(*features, "--dtype=float16")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("no image")
    failing(*features, "--force", f"--images={tmp_path}/bad")
    np.testing.assert_array_equal(np.load(output), before)
    assert len(list(output.parent.iterdir())) == 2
    assert main([*features, "--force", "--dtype=float16"]) == 0
    np.testing.assert_array_equal(np.load(output), before.astype(np.float16))
    assert json.loads(output.with_suffix(".json").read_text())["dtype"] == "float16"
    output.unlink()
    assert "x_ims.json is there already" in failing(*features)


def test_all_unusable_photos_are_listed_and_nothing_is_left(features, photos, tmp_path, failing):
    folder = tmp_path / "photos"
    folder.mkdir()
    whole = (photos / "00.png").read_bytes()
    bad = {0: b"", 9: b"no image", 19: whole[: len(whole) // 2]}
    for index in range(20):
        (folder / f"{index:02d}.png").write_bytes(bad.get(index, whole))
    error = failing(*features, f"--images={folder}")
    assert "3 of 20 photos cannot be used; nothing was written" in error
    assert "\n  00.png: the file is empty\n  09.png: not an image of a known format\n  19.png: " in error
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"00.png\nb/zz.png\n", "list.txt:2: no photo 'b/zz.png' in "),
        (b"00.png\n\nb/01.PNG\n", "list.txt:2: the line is empty"),
        (b"../photos/zz.png\n", "list.txt:1: '../photos/zz.png' leaves the folder of the photos; it must be relative"),
        (b"/etc/passwd\n", "list.txt:1: '/etc/passwd' leaves the folder of the photos"),
        (b"x" * 300, "list.txt:1: no photo 'xxx"),
        (b"b\n", "list.txt:1: no photo 'b' in "),
        (b"\n", "list.txt is empty; it needs the name of a photo on every line"),
        (b"\xff\xfe0", "list.txt is not UTF-16 text"),
        (None, "list.txt cannot be read: No such file or directory"),
    ],
)
def test_bad_lists_are_reported_with_line_numbers(features, tmp_path, failing, content, message):
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    assert message in failing(*features, f"--list={tmp_path}/list.txt")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images={}/file"], "file is not a folder; name a folder of photos"),
        (["--output={}/x"], "x must end in .npy"),
        (["--output={}/file/deep/x.npy"], "file is a file; name a folder"),
        (["--output={}/folder.npy"], "folder.npy is a folder; name another --output"),
        (["--weights={}/none.pth"], "none.pth"),
        (["--weights={}/empty"], "holds no checkpoints"),
        (["--config.model.backbone=tresnet_m"], "tiny.safetensors"),
        (["--config.model.backbone=efficientnet_lite0"], "but config.model.backbone is efficientnet_lite0"),
        (["--config.data.image_size=33"], "config.data.image_size=33 is no multiple of 4"),
        (["--batch_size=0"], "at least 1"),
    ],
)
def test_mistakes_are_reported(features, tmp_path, failing, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file").write_text("")
    error = failing(*features, *(flag.format(tmp_path) for flag in flags))
    assert message in error
    assert (
        error.removeprefix("left out: 2 files of the system or of a photo program: 1 ._*, 1 in .trash\n")[:7]
        == "error: "
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sigterm_leaves_nothing(features, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(scenes.draw(0, 0, 640).image).save(folder / "0.png")
    for index in range(1, 4000):
        (folder / f"{index}.png").symlink_to(folder / "0.png")
    command = [sys.executable, "-m", "aia_jax", *features, f"--images={folder}"]
    environment = {**os.environ, "XLA_FLAGS": xla_flags()}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment)
    deadline = time.monotonic() + 90
    while not any(path.stat().st_size > 1000 for path in tmp_path.glob("out/.aia.*/x_ims.npy")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert list((tmp_path / "out").iterdir()) == []
