"""The attention maps, looked at through their pixels."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from aia_jax.report import attention
from aia_jax.report.attention import draw_attention
from aia_jax.report.figures import FALSE_ALARM, HIT


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def ink(image, color):
    return int((image == np.round(np.array(to_rgb(color)) * 255)).all(-1).sum())


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def draw(path, photo, count, *, hits=None, labels=None):
    maps = np.random.default_rng(1).random((count, 6, 6), np.float32)
    draw_attention(
        path,
        photo,
        maps,
        labels or [f"label {k}" for k in range(count)],
        [0.9] * count,
        hits=[True] * count if hits is None else hits,
        title="demo",
    )
    return pixels(path)


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_the_picture_fits_a_screen(tmp_path, photo, count):
    image = draw(tmp_path / "attention.png", photo, count)
    assert 590 <= image.shape[1] <= 1440
    assert image.shape[0] <= 900
    assert (tmp_path / "attention.png").stat().st_size < 1_500_000
    assert [file.name for file in tmp_path.iterdir()] == ["attention.png"]


def test_the_photo_comes_first_and_in_color(tmp_path):
    photo = np.full((8, 8, 3), (10, 200, 30), np.uint8)
    image = draw(tmp_path / "attention.png", photo, 3)
    columns = np.flatnonzero((image == (10, 200, 30)).all(-1).any(0))
    assert len(columns) > 150
    assert columns.max() < image.shape[1] / 4 + 20


@pytest.mark.parametrize(("hit", "mark", "other"), [(True, HIT, FALSE_ALARM), (False, FALSE_ALARM, HIT)])
def test_hits_and_false_alarms_have_their_own_colors(tmp_path, photo, hit, mark, other):
    none = draw(tmp_path / "none.png", photo, 0)
    image = draw(tmp_path / "one.png", photo, 1, hits=[hit])
    assert ink(image, mark.color) > ink(none, mark.color) > 0
    assert ink(image, other.color) == ink(none, other.color) > 0


def test_nothing_predicted_is_said_in_words(tmp_path, photo, monkeypatch):
    written = []
    write = attention.Page.write
    monkeypatch.setattr(
        attention.Page,
        "write",
        lambda page, text, *place, **style: written.append(text) or write(page, text, *place, **style),
    )
    draw_attention(tmp_path / "attention.png", photo, np.zeros((0, 6, 6)), [], [], hits=[])
    assert "nothing predicted:" in written
    draw_attention(tmp_path / "attention.png", photo, np.zeros((0,)), [], [], hits=[])
    written.clear()
    draw(tmp_path / "attention.png", photo, 2)
    assert "nothing predicted:" not in written


def test_odd_labels_oblong_photos_and_maps_are_drawn(tmp_path):
    photo = np.full((20, 50, 3), 90, np.uint8)
    labels = ["$x_1$", "日本", r"100% \frac", "x" * 200, "two\nlines"]
    draw_attention(
        tmp_path / "odd.png", photo, np.full((5, 3, 7), 0.01), labels, np.linspace(1, 0, 5), hits=np.arange(5) > 2
    )
    assert ink(pixels(tmp_path / "odd.png"), HIT.color) > 0


def test_arguments_of_different_lengths_are_named(tmp_path, photo):
    with pytest.raises(ValueError, match="maps 2, labels 1, scores 2, hits 3"):
        draw_attention(tmp_path / "x.png", photo, np.zeros((2, 3, 3)), ["a"], [0.9, 0.8], hits=[True] * 3)
    assert not list(tmp_path.iterdir())


def test_arrays_of_another_shape_are_refused(tmp_path, photo):
    with pytest.raises(ValueError, match=r"image must be uint8 \[H, W, 3\]"):
        draw_attention(tmp_path / "x.png", photo[..., 0], np.zeros((1, 3, 3)), ["a"], [0.9], hits=[True])
    with pytest.raises(ValueError, match=r"maps must be \[K, h, w\].*\[1, 9\]"):
        draw_attention(tmp_path / "x.png", photo, np.zeros((1, 9)), ["a"], [0.9], hits=[True])
