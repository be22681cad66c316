import numpy as np

from aia_jax.utils.half_floats import widen


def test_all_finite_numbers_are_converted_exactly():
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)].reshape(2, -1)
    np.testing.assert_array_equal(widen(half).view(np.int32), half.astype(np.float32).view(np.int32))
