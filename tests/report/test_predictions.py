"""The grid of predictions, looked at through its pixels."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from aia_jax.report import predictions
from aia_jax.report.figures import FALSE_ALARM, HIT, MISS, plain, shorten
from aia_jax.report.predictions import draw_predictions


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def ink(image, mark):
    """Number of pixels of exactly a mark's colour."""
    return int((image == np.round(np.array(to_rgb(mark.color)) * 255)).all(-1).sum())


GREEN = (10, 200, 30)


def green(count, height=12, width=12):
    return np.full((count, height, width, 3), GREEN, np.uint8)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (7, 4), (12, 6), (24, 8)])
def test_the_grid_fits_a_screen(tmp_path, count, columns):
    path = tmp_path / "predictions.png"
    draw_predictions(path, green(count), [["sea"]] * count, [["sea"]] * count, title="demo")
    image = pixels(path)
    assert 500 <= image.shape[1] <= 1440
    assert path.stat().st_size < 1_500_000
    photos = (image == GREEN).all(-1)
    assert _runs(photos.any(0)) == columns
    assert _runs(photos.any(1)) == -(-count // columns)


@pytest.mark.parametrize(
    ("true", "predicted", "mark"), [(["sea"], ["sea"], HIT), (["sea"], [], MISS), ([], ["sea"], FALSE_ALARM)]
)
def test_hits_misses_and_false_alarms_have_their_own_colors(tmp_path, true, predicted, mark):
    draw_predictions(tmp_path / "empty.png", green(1), [[]], [[]])
    draw_predictions(tmp_path / "one.png", green(1), [true], [predicted])
    legend, image = pixels(tmp_path / "empty.png"), pixels(tmp_path / "one.png")
    assert all(ink(legend, each) > 0 for each in (HIT, MISS, FALSE_ALARM))
    assert [each for each in (HIT, MISS, FALSE_ALARM) if ink(image, each) > ink(legend, each)] == [mark]


def test_marks_differ_without_color():
    assert len({mark.sign for mark in (HIT, MISS, FALSE_ALARM)}) == 3
    assert plain("".join(mark.sign for mark in (HIT, MISS, FALSE_ALARM))) == "✓○✗"


def test_outcomes_stand_in_order():
    words = predictions._outcomes(["sea", "sky", "sun"], ["boat", "sun", "sea"])
    assert [text for text, _ in words] == ["✓ sun", "✓ sea", "○ sky", "✗ boat"]


def test_a_long_list_wraps_and_ends_in_a_count():
    words = predictions._set_words([(f"✓ label {k}", HIT.color) for k in range(40)], 2.0)
    assert {word.line for word in words} == set(range(6))
    shown = len(words) - 1
    assert words[-1].text == f"+{40 - shown} more"
    assert shown > 5


def test_no_labels_are_said_in_words():
    assert [word.text for word in predictions._set_words([], 2.0)] == ["no labels"]


def test_odd_characters_are_shown_as_they_are(tmp_path):
    odd = ["$x_1$", "100%", r"$\frac$", "a_b^c", "日本", "naïve", "tab\there", "two\nlines", "", "x" * 300]
    draw_predictions(tmp_path / "odd.png", green(2), [odd, []], [odd[:3], odd[4:]], title="$ _ % \\ 日本 " * 40)
    assert ink(pixels(tmp_path / "odd.png"), HIT) > 0
    assert plain("日本\n$x_1$ naïve") == "□□ $x_1$ naïve"
    assert shorten("x" * 300, 1.0).endswith("x…")
    assert shorten("sea", 1.0) == "sea"


def test_photos_may_be_oblong(tmp_path):
    draw_predictions(tmp_path / "wide.png", green(2, 10, 40), [["a"], []], [[], ["b"]])
    photos = (pixels(tmp_path / "wide.png") == GREEN).all(-1)
    assert photos.any(0).sum() / 2 == pytest.approx(4 * photos.any(1).sum(), rel=0.05)


def test_an_old_picture_is_replaced_and_nothing_else_is_left(tmp_path):
    (tmp_path / "predictions.png").write_bytes(b"old")
    draw_predictions(tmp_path / "predictions.png", green(1), [["a"]], [["a"]])
    pixels(tmp_path / "predictions.png")
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.png"]


def test_a_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    def full_disk(figure, file, **_):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    (tmp_path / "predictions.png").write_bytes(b"old")
    monkeypatch.setattr("aia_jax.report.figures.Figure.savefig", full_disk)
    with pytest.raises(OSError, match="no space"):
        draw_predictions(tmp_path / "predictions.png", green(1), [["a"]], [["a"]])
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("predictions.png", b"old")]


def test_arguments_of_different_lengths_are_named(tmp_path):
    with pytest.raises(ValueError, match="images 2, true 3, predicted 2"):
        draw_predictions(tmp_path / "x.png", green(2), [[]] * 3, [[]] * 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", [np.zeros((1, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), green(0)])
def test_images_of_another_kind_are_refused(tmp_path, images):
    with pytest.raises(ValueError, match=r"images must be uint8 \[K, H, W, 3\]"):
        draw_predictions(tmp_path / "x.png", images, [[]] * len(images), [[]] * len(images))


def _runs(flags):
    """Number of stretches of True."""
    return int((np.diff(flags.astype(int), prepend=0) == 1).sum())
