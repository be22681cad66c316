import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from aia_jax.data import scenes
from aia_jax.data.annotation import image_cache
from aia_jax.data.annotation.channel_stats import CHANNEL_STATS
from aia_jax.data.annotation.datasets import load_split, split_validation
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.utils.errors import InputError
from tests.helpers.photos import LABELS, data_config, make_dataset, make_photo, write_annotations


@pytest.fixture
def photos(tmp_path):
    return make_dataset(tmp_path / "data")


@pytest.fixture
def config(tmp_path, photos):
    return data_config(tmp_path / "data", tmp_path / "cache")


def _copies(tmp_path) -> list[str]:
    return sorted(path.parent.name for path in (tmp_path / "cache").rglob("split.json"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_are_the_resized_photos_in_order_and_can_be_selected(config, photos, num_workers):
    config.num_workers = num_workers
    split = load_split(config, "train", 16)
    assert len(split) == 5
    assert split.labels == tuple(LABELS)
    assert split.image_names == tuple(f"{i}.jpeg" for i in range(5))
    np.testing.assert_array_equal(split.targets, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    assert (split.images.shape, split.images.dtype) == ((5, 16, 16, 3), np.uint8)
    for row, name in enumerate(split.image_names):
        expected = Image.open(photos / name).resize((16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(split.images[row], np.asarray(expected))
    part = split.take([4, 0, 2])
    assert part.image_names == ("4.jpeg", "0.jpeg", "2.jpeg")
    np.testing.assert_array_equal(part.images, np.asarray(split.images)[[4, 0, 2]])
    np.testing.assert_array_equal(part.targets, split.targets[[4, 0, 2]])
    nested = part.take(np.array([2, 1]))
    assert nested.image_names == ("2.jpeg", "0.jpeg")
    np.testing.assert_array_equal(nested.images[np.array([1, 0])], np.asarray(split.images)[[0, 2]])


def test_a_copy_is_prepared_once_for_each_size_and_again_if_interrupted_or_truncated(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load_split(config, "train", 16)
    assert _copies(tmp_path) == []
    expected = np.array(load_split(config, "train", 16).images)
    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "decode_image", pytest.fail)
        np.testing.assert_array_equal(load_split(config, "train", 16).images, expected)
    (images,) = (tmp_path / "cache").rglob("images.npy")
    os.truncate(images, images.stat().st_size - 100)
    np.testing.assert_array_equal(load_split(config, "train", 16).images, expected)
    assert load_split(config, "train", 8).images.shape == (5, 8, 8, 3)
    assert len(_copies(tmp_path)) == 2


@pytest.mark.parametrize("change", ["touch", "photo", "labels", "samples"])
def test_changed_sources_make_a_new_copy(config, photos, tmp_path, change):
    load_split(config, "train", 16)
    before = _copies(tmp_path)
    annotations = photos.parent / "train.json"
    document = json.loads(annotations.read_text())
    if change == "touch":
        os.utime(photos / "0.jpeg", ns=(1, 1))
    elif change == "photo":
        make_photo(photos / "0.jpeg", seed=99)
    elif change == "labels":
        document["samples"][0]["image_labels"] = ["tree"]
    else:
        document["samples"].pop()
    annotations.write_text(json.dumps(document))
    split = load_split(config, "train", 16)
    after = _copies(tmp_path)
    assert len(after) == 1
    assert after != before
    expected = Image.open(photos / "0.jpeg").resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(split.images[0], np.asarray(expected))
    assert len(split) == len(document["samples"])
    assert split.targets[0].tolist() == ([0, 0, 1] if change == "labels" else [1, 0, 0])


def test_all_bad_photos_are_listed_or_left_out(config, photos, tmp_path, capsys):
    (photos / "0.jpeg").unlink()
    (photos / "1.jpeg").write_bytes(b"")
    (photos / "2.jpeg").write_bytes((photos / "2.jpeg").read_bytes()[:-200])
    (photos / "4.jpeg").write_text("<html>")
    with pytest.raises(InputError) as caught:
        load_split(config, "train", 16)
    first, *lines = str(caught.value).splitlines()
    assert "4 image(s) cannot be used" in first
    assert "--config.data.skip_corrupt=True" in first
    for name, reason in (("0.jpeg", "No such file"), ("1.jpeg", "empty"), ("2.jpeg", "trunc"), ("4.jpeg", "web page")):
        assert sum(name in line and reason in line for line in lines) == 1, name
    assert len(lines) == 4
    assert _copies(tmp_path) == []
    config.skip_corrupt = True
    split = load_split(config, "train", 16)
    assert "4 image(s) left out" in capsys.readouterr().err
    assert split.image_names == ("3.jpeg",)
    assert split.images.shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(split.targets, [[1, 0, 0]])
    (facts,) = (tmp_path / "cache").rglob("split.json")
    assert len(json.loads(facts.read_text())["left_out"]) == 4
    shutil.rmtree(photos)
    (photos / "0.jpeg").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no image can be used(?s:.*)0\.jpeg: not a file"):
        load_split(config, "train", 16)


def test_links_that_leave_the_data_set_are_refused(config, photos, tmp_path):
    outside = tmp_path / "elsewhere"
    photos.rename(outside)
    photos.symlink_to(outside)  # The whole folder may be elsewhere.
    expected = load_split(config, "train", 8)
    (tmp_path / "private.jpeg").write_bytes((outside / "1.jpeg").read_bytes())
    (outside / "1.jpeg").rename(photos.parent / "kept.jpeg")
    (outside / "1.jpeg").symlink_to(photos.parent / "kept.jpeg")  # A photo may be elsewhere in the data set.
    np.testing.assert_array_equal(load_split(config, "train", 8).images[:], expected.images[:])
    (outside / "2.jpeg").unlink()
    (outside / "2.jpeg").symlink_to(tmp_path / "private.jpeg")
    (outside / "3.jpeg").unlink()
    (outside / "3.jpeg").symlink_to("3.jpeg")
    with pytest.raises(InputError, match=r"2 image\(s\) cannot be used") as caught:
        load_split(config, "train", 8)
    assert f"2.jpeg: a link to {tmp_path / 'private.jpeg'}, outside of the data set" in str(caught.value)
    assert "3.jpeg: Too many levels of symbolic links" in str(caught.value)
    config.skip_corrupt = True
    assert len(load_split(config, "train", 8)) == len(expected) - 2


def test_a_photo_that_cannot_be_read_for_a_moment_is_not_left_out(config, photos, tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    config.skip_corrupt, config.num_workers = True, 0
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fail)
        with pytest.raises(InputError, match=r"\.jpeg cannot be read: Input/output error"):
            load_split(config, "train", 16)
    assert _copies(tmp_path) == []
    assert len(load_split(config, "train", 16)) == 5


def test_only_the_requested_split_must_exist(tmp_path):
    photo = make_photo(tmp_path / "data" / "Corel-5k" / "images" / "a.jpeg")
    write_annotations(tmp_path / "data", [{"image_name": photo.name, "image_labels": []}], split="test")
    assert len(load_split(data_config(tmp_path / "data", tmp_path / "cache"), "test", 8)) == 1


def test_unknown_names_are_refused(config):
    with pytest.raises(InputError, match="split 'dev' is unknown"):
        load_split(config, "dev", 16)
    config.name = "mnist"
    with pytest.raises(InputError, match="dataset 'mnist' is unknown; known: corel5k"):
        load_split(config, "train", 16)


def test_mapped_rows_are_indexed_like_an_array(tmp_path):
    array = np.arange(6_000_000, dtype=np.uint8).reshape(1000, 6000)
    np.save(tmp_path / "rows.npy", array)
    rows = MappedRows(tmp_path / "rows.npy").take(np.arange(10, 20))
    np.testing.assert_array_equal(rows, array[10:20])
    np.testing.assert_array_equal(rows[2:4], array[12:14])
    np.testing.assert_array_equal(rows[-1], array[19])
    assert np.asarray(rows, np.float32).dtype == np.float32
    assert len(rows) == 10


@pytest.mark.parametrize("stratified", [False, True])
def test_the_validation_part_is_disjoint_not_empty_and_depends_on_the_seed_only(config, stratified):
    split = load_split(config, "train", 16)
    train, validation = split_validation(split, 0.4, seed=1, stratified=stratified)
    assert (train.name, validation.name, len(train), len(validation)) == ("train", "validation", 3, 2)
    assert sorted(train.image_names + validation.image_names) == sorted(split.image_names)
    again = split_validation(split, 0.4, seed=1, stratified=stratified)
    assert (train.image_names, validation.image_names) == tuple(part.image_names for part in again)
    assert len({split_validation(split, 0.4, seed, stratified=stratified)[1].image_names for seed in range(8)}) > 1
    for fraction in (0.0, 0.05, 0.95, 1.0, 1.5, -0.5):
        with pytest.raises(InputError, match=r"config\.data\.validation_fraction"):
            split_validation(split, fraction, seed=1, stratified=stratified)


def test_scenes_are_the_drawn_pictures_with_the_known_channel_statistics(tmp_path):
    config = data_config(tmp_path, tmp_path / "cache", name="scenes", num_train=6, num_test=3, seed=5)
    train, test = load_split(config, "train", 24), load_split(config, "test", 24)
    assert (len(train), len(test), train.labels) == (6, 3, scenes.LABELS)
    assert train.image_names[5] == "scene_000005.png"
    assert not set(train.image_names) & set(test.image_names)
    for split, first in ((train, 0), (test, 10_000_000)):
        for row in range(len(split)):
            scene = scenes.draw(5, first + row, 24)
            np.testing.assert_array_equal(split.images[row], scene.image)
            assert {split.labels[column] for column in split.targets[row].nonzero()[0]} == set(scene.labels)
    config.num_train = 0
    with pytest.raises(InputError, match=r"config\.data\.num_train=0"):
        load_split(config, "train", 24)
    pixels = np.stack([scenes.draw(0, index, 32).image for index in range(300)]).reshape(-1, 3) / 255
    np.testing.assert_allclose((pixels.mean(axis=0), pixels.std(axis=0)), CHANNEL_STATS["scenes"], atol=0.03)


def test_custom_photos_are_turned_upright(tmp_path):
    photos = make_dataset(tmp_path, 1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(photos / "0.jpeg", exif=exif)
    as_it_is, upright = (
        load_split(data_config(root, tmp_path / "cache", name=name), "train", 10).images[0]
        for name, root in (("corel5k", tmp_path), ("custom", photos.parent))
    )
    np.testing.assert_array_equal(upright, np.rot90(as_it_is, -1))


def test_the_real_corel5k(corel5k_root, tmp_path):
    split = load_split(data_config(corel5k_root, tmp_path / "cache"), "test", 32)
    assert (len(split), split.images.shape, split.targets.shape) == (499, (499, 32, 32, 3), (499, 260))
    with Image.open(corel5k_root / "Corel-5k" / "images" / split.image_names[-1]) as photo:
        expected = photo.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(split.images[-1], np.asarray(expected))
