import numpy as np
import pytest

from aia_jax.report.heat import overlay, upsample


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
