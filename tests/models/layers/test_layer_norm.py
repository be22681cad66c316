"""Layer norm with its own backward pass, against flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.layers.layer_norm import LayerNorm, _normalised_rows

SIZE = 16


def _normal(*shape: int, mean: float = 0, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 1, shape), jnp.float32)


def _layer(dtype) -> LayerNorm:
    layer = LayerNorm(SIZE, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.scale[...], layer.bias[...] = _normal(SIZE, mean=1, seed=1), _normal(SIZE, seed=2)
    return layer


def test_rows_and_their_gradients():
    x, scale, bias = _normal(3, 5, SIZE, mean=2), _normal(SIZE, mean=1, seed=1), _normal(SIZE, seed=2)
    dy = _normal(*x.shape, seed=3)

    def plain(x, scale, bias):
        normalised = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
        return normalised * scale + bias

    ours, pull = jax.vjp(lambda *arrays: _normalised_rows(*arrays, 1e-5), x, scale, bias)
    expected, expected_pull = jax.vjp(plain, x, scale, bias)
    for a, b in zip((ours, *pull(dy)), (expected, *expected_pull(dy)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_in_bfloat16_rows_are_normalised_as_in_float32(batch, mean):
    x = _normal(batch, 5, SIZE, mean=mean).astype(jnp.bfloat16)
    expected = _layer(jnp.float32)(x.astype(jnp.float32))
    ours = _layer(jnp.bfloat16)(x)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=0, atol=0.01 * float(jnp.abs(expected).max()))


def test_constant_rows_stay_finite():
    x = jnp.full((2, 3, SIZE), 300, jnp.bfloat16)
    layer = _layer(jnp.bfloat16)
    np.testing.assert_array_equal(layer(x), jnp.broadcast_to(layer.bias[...], x.shape).astype(jnp.bfloat16))
    gradient = jax.grad(lambda x: layer(x).astype(jnp.float32).sum())(x)
    assert jnp.isfinite(gradient).all()
