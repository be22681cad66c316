import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aia_jax.data.transforms import mixup, normalize, random_flips
from aia_jax.utils.errors import InputError


def test_all_four_flips_are_about_equally_frequent():
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    flipped = np.asarray(random_flips(jnp.tile(image, (4000, 1, 1, 1)), jax.random.key(0)))
    forms = [image[0, ::up, ::left] for up in (1, -1) for left in (1, -1)]
    counts = [int((flipped == form).all(axis=(1, 2, 3)).sum()) for form in forms]
    assert sum(counts) == 4000
    assert min(counts) > 900
    assert flipped.dtype == np.uint8


def test_normalize():
    images = np.array([[[[0, 255, 51]]]], np.uint8)
    np.testing.assert_allclose(
        normalize(images, (0.5, 0.0, 0.2), (0.5, 2.0, 0.1)), [[[[-1.0, 0.5, 0.0]]]], rtol=1e-6, atol=1e-6
    )


def test_mixup_averages_both_halves_of_an_even_batch():
    images = jnp.arange(4.0).reshape(4, 1, 1, 1)
    targets = jnp.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1.0]])
    mixed, union = mixup(images, targets)
    np.testing.assert_array_equal(mixed.ravel(), [1.0, 2.0, 2.0, 3.0])
    np.testing.assert_array_equal(union, [[1, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 1]])
    with pytest.raises(InputError, match="even batch_size, not 3"):
        mixup(jnp.zeros((3, 1, 1, 1)), jnp.zeros((3, 2)))
