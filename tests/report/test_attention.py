import numpy as np
import pytest

from aia_jax.report.attention import draw_attention
from aia_jax.report.figures import overlay, upsample
from aia_jax.report.page_parts import FALSE_ALARM, HIT
from tests.helpers.pictures import GREEN, ink

PHOTO = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


@pytest.fixture
def draw(drawn):
    """Draws a photo with the maps of some labels, and returns the pixels."""

    def draw_labels(count, *, photo=PHOTO, hit=True):
        maps = np.random.default_rng(1).random((count, 6, 6), np.float32)
        labels = [f"label {k}" for k in range(count)]
        return drawn(draw_attention, photo, maps, labels, [0.9] * count, hits=[hit] * count, title="demo")

    return draw_labels


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_the_picture_fits_a_screen(draw, count):
    image = draw(count)
    assert 590 <= image.shape[1] <= 1440
    assert image.shape[0] <= 900


def test_the_photo_comes_first_and_in_color(draw):
    image = draw(3, photo=np.full((8, 8, 3), GREEN, np.uint8))
    columns = np.flatnonzero(ink(image, GREEN).any(0))
    assert len(columns) > 150
    assert columns.max() < image.shape[1] / 4 + 20


@pytest.mark.parametrize(("hit", "mark", "other"), [(True, HIT, FALSE_ALARM), (False, FALSE_ALARM, HIT)])
def test_hits_and_false_alarms_have_their_own_colors(draw, hit, mark, other):
    none, image = draw(0), draw(1, hit=hit)
    assert ink(image, mark.color).sum() > ink(none, mark.color).sum() > 0
    assert ink(image, other.color).sum() == ink(none, other.color).sum() > 0


def test_a_text_replaces_the_maps_if_no_label_is_predicted(draw, drawn, written):
    for maps in (np.zeros((0, 6, 6)), np.zeros((0,))):
        drawn(draw_attention, PHOTO, maps, [], [], hits=[])
        assert "no label predicted:" in written
        written.clear()
    draw(2)
    assert "no label predicted:" not in written


def test_unusual_labels_and_oblong_photos_and_maps_are_drawn(drawn):
    photo = np.full((20, 50, 3), 90, np.uint8)
    labels = ["$x_1$", "日本", r"100% \frac", "x" * 200, "two\nlines"]
    maps, scores = np.full((5, 3, 7), 0.01), np.linspace(1, 0, 5)
    assert ink(drawn(draw_attention, photo, maps, labels, scores, hits=np.arange(5) > 2), HIT.color).any()


def test_a_map_is_smooth_and_scaled_to_its_peak():
    heat = upsample(np.array([[0, 0, 0], [0, 0.02, 0], [0, 0, 0]], np.float32), (60, 30))
    assert heat.shape == (60, 30)
    assert (heat.min(), heat.max()) == (0, 1)
    assert np.unravel_index(heat.argmax(), heat.shape) in {(29, 14), (29, 15), (30, 14), (30, 15)}
    assert np.abs(np.diff(heat, axis=0)).max() < 0.1
    np.testing.assert_array_equal(upsample(np.zeros((3, 3), np.float32), (5, 5)), 0)


def test_only_hot_places_have_color():
    photo = np.full((1, 2, 3), 128, np.uint8)
    cold, hot = overlay(photo, np.array([[0.0, 1.0]], np.float32))[0]
    assert np.ptp(cold) == pytest.approx(0, abs=1e-9)
    assert np.ptp(hot) > 0.25
