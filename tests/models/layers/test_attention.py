"""Attention with its own backward pass, against the plain formula and JAX's own derivatives of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.attention_pooling import MultiHeadAttention
from aia_jax.models.layers.attention import attend
from aia_jax.models.layers.common import kept_by_dropout

BATCH, LABELS, POSITIONS, HEADS, SIZE = 3, 5, 7, 2, 4
RATE = 0.25


def _normal(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), jnp.float32)


def _plain(q, k, v, kept):
    weights = jax.nn.softmax(jnp.einsum("bchd,bphd->bhpc", jnp.broadcast_to(q, (BATCH, *q.shape[1:])), k), axis=2)
    if kept is not None:
        weights = jnp.where(kept, weights / (1 - RATE), 0)
    return jnp.einsum("bhpc,bphd->bchd", weights, v), weights.mean(axis=1).swapaxes(1, 2)


@pytest.mark.parametrize("rows", [1, BATCH])
@pytest.mark.parametrize("dropped", [False, True])
def test_attention_and_its_gradients(rows, dropped):
    q = _normal(rows, LABELS, HEADS, SIZE, seed=0)
    k, v = _normal(BATCH, POSITIONS, HEADS, SIZE, seed=1), _normal(BATCH, POSITIONS, HEADS, SIZE, seed=2)
    shape = (BATCH, HEADS, POSITIONS, LABELS)
    kept = kept_by_dropout(shape, RATE, jax.random.key(0)) if dropped else None
    assert not dropped or 0 < int((~kept).sum()) < kept.size / 2
    cotangents = _normal(BATCH, LABELS, HEADS, SIZE, seed=3), _normal(BATCH, LABELS, POSITIONS, seed=4)

    ours, pull = jax.vjp(lambda *qkv: attend(*qkv, kept, RATE), q, k, v)
    expected, expected_pull = jax.vjp(lambda *qkv: _plain(*qkv, kept), q, k, v)
    pairs = zip((*ours, *pull(cotangents)), (*expected, *expected_pull(cotangents)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))


def test_scores_far_apart_stay_finite():
    q = jnp.full((1, LABELS, HEADS, SIZE), 300, jnp.bfloat16)
    k = jnp.broadcast_to(jnp.linspace(-1, 1, POSITIONS)[:, None, None], (BATCH, POSITIONS, HEADS, SIZE))
    v = _normal(BATCH, POSITIONS, HEADS, SIZE, seed=0).astype(jnp.bfloat16)

    def loss(q, k, v):
        return attend(q, k.astype(jnp.bfloat16), v, None, 0.0)[0].astype(jnp.float32).sum()

    pooled, _ = attend(q, k.astype(jnp.bfloat16), v, None, 0.0)
    np.testing.assert_array_equal(pooled, jnp.broadcast_to(v[:, -1:], pooled.shape))
    for gradient in jax.grad(loss, (0, 1, 2))(q, k, v):
        assert jnp.isfinite(gradient).all()


def test_in_bfloat16_the_layer_gives_what_it_gives_in_float32():
    def layer(dtype):
        options = {"dropout": RATE, "dtype": dtype, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        return MultiHeadAttention(HEADS * SIZE, HEADS, **options)

    query, keys = _normal(1, LABELS, HEADS * SIZE, seed=1), _normal(BATCH, POSITIONS, HEADS * SIZE, seed=2)
    wide, wide_maps = layer(jnp.float32)(query, keys, keys, key=None)
    narrow, narrow_maps = layer(jnp.bfloat16)(query, keys, keys, key=None)
    assert narrow.dtype == jnp.bfloat16
    assert narrow_maps.dtype == jnp.float32
    np.testing.assert_allclose(narrow.astype(jnp.float32), wide, atol=0.02 * float(jnp.abs(wide).max()))
    np.testing.assert_allclose(narrow_maps, wide_maps, atol=0.02 * float(wide_maps.max()))
    np.testing.assert_allclose(narrow_maps.sum(axis=-1), 1, atol=1e-5)
