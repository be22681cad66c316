"""`aia_jax.load`: annotators of photos in memory."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

import aia_jax
from aia_jax.data import scenes
from aia_jax.tasks.registry import make_task
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.utils.errors import InputError
from tests.helpers.untrained import annotator_config, random_weights, write_run

SIZE = 32


@pytest.fixture(scope="module")
def annotator(workdir):
    return aia_jax.load(workdir, batch_size=8)


@pytest.fixture(scope="module")
def pixels():
    return np.stack([scenes.draw(5, number, SIZE).image for number in range(11)])


def test_paths_images_and_arrays_give_equal_results(annotator, pixels, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(len(pixels))]
    images = [Image.fromarray(image) for image in pixels]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    found = annotator(pixels)
    for result, count in ((found, 11), (annotator([]), 0)):
        assert len(result.labels) == count
        assert result.scores.shape == result.attention.shape[:2] == (count, 22)
    assert found.scores.dtype == found.attention.dtype == np.float32
    np.testing.assert_allclose(found.attention.sum(axis=(2, 3)), 1, rtol=1e-5)
    for given in (paths, images, list(pixels), [*map(str, paths[:4]), *images[4:8], *pixels[8:]]):
        np.testing.assert_array_equal(annotator(given).scores, found.scores)
    for one in (paths[3], str(paths[3]), images[3], pixels[3]):
        alone = annotator(one)
        np.testing.assert_allclose(alone.scores, found.scores[3:4], rtol=0, atol=1e-6)
        assert len(alone.labels) == 1


def test_labels_score_above_the_threshold(annotator, workdir, pixels):
    scores = annotator(pixels).scores
    threshold = np.float32(np.median(scores))
    found = aia_jax.load(workdir, threshold=float(threshold), top=5, batch_size=8)(pixels)
    for labels, row in zip(found.labels, scores, strict=True):
        order = [column for column in np.argsort(-row, kind="stable") if row[column] > threshold][:5]
        assert [label for label, _ in labels] == [annotator.labels[column] for column in order]
        assert [np.float32(score) for _, score in labels] == row[order].tolist()


def test_thresholds_of_the_run_are_used(workdir, pixels, tmp_path):
    limits = dict.fromkeys(scenes.LABELS, 1.0) | {scenes.LABELS[3]: 0.0}
    run = shutil.copytree(workdir, tmp_path / "run")
    for path in (run / "thresholds.json", tmp_path / "given.json"):
        path.write_text(json.dumps(limits))
    found = aia_jax.load(run, batch_size=8)(pixels)
    assert [[label for label, _ in labels] for labels in found.labels] == [[scenes.LABELS[3]]] * 11
    assert aia_jax.load(workdir, threshold=tmp_path / "given.json", batch_size=8)(pixels).labels == found.labels


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"[" * 100_000, "config.json is nested too deeply"),
        ("config.json", b"{}", "config.json does not say what model"),
        ("config.json", b'{"task": "annotation", "model": {}, "data": {}}', "json is damaged, or of another version"),
        ("config.json", ("hidden_size", '"x"'), "config.json is damaged, or of another version"),
        ("config.json", ("hidden_size", "0"), "config.model.hidden_size=0 must be at least 1"),
        (
            "environment.json",
            b'{"packages": {"aia_jax": "9.1.0"}}',
            r"was written by aia_jax 9\.1\.0, and this is .*; install",
        ),
        ("config.json", ("seed", '1, "seed": 1'), "config.json has the field 'seed' twice"),
        ("thresholds.json", b"\xff", "thresholds.json is not UTF-8 text"),
        ("checkpoints/0/info/metadata", b"{", "checkpoints/0 is damaged: info: .* sets it aside"),
    ],
)
def test_damaged_runs_are_refused(workdir, tmp_path, file, content, message):
    copy = shutil.copytree(workdir, tmp_path / "run")
    path = copy / file
    if isinstance(content, tuple):
        field, value = content
        path.write_text(re.sub(f'"{field}": [0-9]+', f'"{field}": {value}', path.read_text()))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        aia_jax.load(copy)


def test_a_head_without_attention_gives_no_maps(tmp_path, pixels):
    workdir = write_run(tmp_path / "run", annotator_config(**{"model.head": "gap"}))
    found = aia_jax.load(workdir, batch_size=8)(pixels)
    assert found.attention is None
    assert found.scores.shape == (11, 22)


def test_softmax_scores_of_an_image_add_up_to_one(tmp_path, pixels):
    config = annotator_config(**{"model.score": "softmax"})
    workdir = write_run(tmp_path / "run", config, random_weights(make_task(config)))
    scores = aia_jax.load(workdir, batch_size=8)(pixels).scores
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
    config = json.loads((workdir / "config.json").read_text())
    del config["model"]["score"]  # as in runs of earlier versions
    (workdir / "config.json").write_text(json.dumps(config))
    logits = np.log(scores)
    sigmoid = aia_jax.load(workdir, batch_size=8)(pixels).scores
    offsets = np.log(sigmoid / (1 - sigmoid)) - logits
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[:, :1], offsets.shape), atol=1e-4)


def test_softmax_scores_cannot_be_trained():
    config = annotator_config(**{"model.score": "softmax"})
    with pytest.raises(InputError, match=r"config.model.score='softmax' cannot be trained; set it to 'sigmoid'"):
        make_task(config).mean_loss(np.zeros((1, 22)), np.zeros((1, 22)))


def test_folded_batch_norm_changes_no_score(tmp_path, pixels):
    config = annotator_config()
    workdir = write_run(tmp_path / "run", config, random_weights(make_task(config)))
    once, each_call = (TrainedAnnotator.from_run(workdir, 11, fold=fold) for fold in (True, False))
    found, expected = (jax.device_get(model.predict(pixels, explain=True)) for model in (once, each_call))
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6)
    assert np.ptp(found["scores"], axis=0).max() > 1e-3
    assert once.digest == each_call.digest
    weights, own = once.arrays(), each_call.arrays()
    assert not any(path.endswith(".bn.var") for path in weights)
    assert sum(array.nbytes for array in weights.values()) < sum(array.nbytes for array in own.values())


def test_exif_orientation_is_applied(annotator, pixels, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.fromarray(pixels[0, ::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        for given in (tmp_path / "turned.png", image):
            np.testing.assert_array_equal(annotator(given).scores, annotator(pixels[0]).scores)


def test_grey_and_large_images_are_accepted(annotator, pixels):
    grey = pixels[0, ..., 0]
    np.testing.assert_array_equal(annotator(grey).scores, annotator(np.repeat(grey[..., None], 3, axis=2)).scores)
    large = np.kron(pixels[0], np.ones((4, 4, 1), np.uint8))
    np.testing.assert_allclose(annotator(large).scores, annotator(pixels[0]).scores, atol=0.1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("nowhere.jpg", "nowhere.jpg: No such file or directory"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3))], r"images\[1\]: an array must be uint8 \[H, W, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), r"images\[0\]: .* found uint8 \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"images\[0\]: .* found uint8 \[0, 4, 3\]"),
        ([__file__], r"test_annotator.py: not an image of a known format"),
        ([None], r"images\[0\]: must be a path, a PIL image or an array, found NoneType"),
    ],
)
def test_bad_images_are_named(annotator, images, message):
    with pytest.raises(InputError, match=message):
        annotator(images)


def test_a_forked_process_is_refused_instead_of_waiting_for_ever(annotator, pixels, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(InputError, match="loaded before this process was forked; load it in each process"):
        annotator(pixels[0])


def test_diverged_weights_are_refused(annotator, pixels, monkeypatch):
    monkeypatch.setattr(annotator._annotator, "predict", lambda rows, explain: {"scores": np.full((8, 22), np.nan)})
    with pytest.raises(InputError, match="the model gives scores that are not finite"):
        annotator(pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 2}, r"the threshold must lie in 0\.\.1, not 2"),
        ({"labels": "labels.txt"}, "labels.txt cannot be read"),
        ({"config": "none.py"}, "none.py: no such file"),
    ],
)
def test_bad_options_are_refused(workdir, options, message):
    with pytest.raises(InputError, match=message):
        aia_jax.load(workdir, **options)


def test_importing_the_package_is_light():
    code = "import sys, aia_jax; aia_jax.load; print(sorted({'jax', 'numpy', 'PIL', 'flax'} & set(sys.modules)))"
    folder = Path(aia_jax.__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=folder) == "[]\n"
