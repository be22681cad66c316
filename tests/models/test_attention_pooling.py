import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.attention_pooling import AttentionPooling, LayerNorm
from aia_jax.models.layers.common import Frozen
from aia_jax.utils.errors import InputError

SIZES = {"hidden_size": 32, "num_heads": 4, "feedforward_size": 64}


def _head(**options) -> AttentionPooling:
    return AttentionPooling(6, 16, **SIZES | options, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def features() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (3, 4, 5, 16))


def test_maps_are_distributions_over_the_positions(features):
    logits, out = _head()(features, train=False)
    assert logits.shape == (3, 6)
    assert out["attention"].shape == (3, 6, 4, 5)
    assert out["attention"].min() > 0
    np.testing.assert_allclose(out["attention"].sum((2, 3)), 1, rtol=1e-5)


def test_the_query_embedding_is_frozen_unless_the_queries_attend_to_each_other():
    frozen, trained = _head(), _head(self_attention=True)
    assert isinstance(frozen.query_embedding, Frozen)
    assert not any("query_embedding" in path for path, _ in nnx.to_flat_state(nnx.state(frozen, nnx.Param)))
    assert isinstance(trained.query_embedding, nnx.Param)
    assert not jax.tree.leaves(nnx.state(trained, Frozen))


@pytest.mark.parametrize("self_attention", [False, True])
def test_dropout_differs_between_images_and_needs_a_key(features, self_attention):
    head = _head(self_attention=self_attention, dropout=0.5)
    same = jnp.broadcast_to(features[:1], features.shape)
    logits, _ = head(same, train=True, key=jax.random.key(0))
    assert abs(logits[0] - logits[1]).max() > 1e-3
    np.testing.assert_array_equal(logits, head(same, train=True, key=jax.random.key(0))[0])
    with pytest.raises(ValueError, match="needs a key"):
        head(same, train=True)
    evaluated, _ = head(same, train=False)
    np.testing.assert_allclose(evaluated[0], evaluated[1], rtol=1e-5)


def test_the_query_projection_is_computed_once_for_the_batch(features):
    """No product with the query weights has a batch dimension: its result is [1, labels, hidden]."""
    graphdef, state = nnx.split(_head())
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x, train=False)[0])(state, features)
    shapes = [v.aval.shape for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general" for v in eqn.outvars]
    assert shapes.count((1, 6, 32)) == 1


def test_bfloat16_gives_float32_logits_and_maps_near_the_exact_ones(features):
    exact, exact_out = _head()(features, train=False)
    logits, out = _head(dtype=jnp.bfloat16)(features.astype(jnp.bfloat16), train=False)
    assert logits.dtype == out["attention"].dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=0.05)
    np.testing.assert_allclose(out["attention"], exact_out["attention"], atol=0.01)


def test_initial_weights():
    head = AttentionPooling(50, 64, hidden_size=128, num_heads=4, feedforward_size=256, rngs=nnx.Rngs(0))
    attention = head.layers[0].cross_attention
    bounds = {
        "packed in-projection": (attention.key.kernel, math.sqrt(6 / (4 * 128))),
        "out-projection": (attention.out.kernel, math.sqrt(6 / (2 * 128))),
        "feed-forward": (head.layers[0].linear1.kernel, math.sqrt(6 / (128 + 256))),
        "feed-forward bias": (head.layers[0].linear2.bias, 256**-0.5),
        "projection": (head.projection.kernel, 64**-0.5),
    }
    for name, (variable, bound) in bounds.items():
        largest = abs(variable[...]).max()
        assert 0.95 * bound < largest <= bound, name
    np.testing.assert_array_equal(attention.query.bias[...], 0)
    np.testing.assert_array_equal(head.bias[...], 0)
    np.testing.assert_allclose(head.weight[...].std(), math.sqrt(2 / (50 * 128 + 128)), rtol=0.05)
    np.testing.assert_allclose(head.query_embedding[...].std(), 1, rtol=0.05)


def test_unusable_options_are_refused():
    with pytest.raises(InputError, match="'tanh'; known: relu, gelu"):
        _head(activation="tanh")
    with pytest.raises(InputError, match="hidden_size 32 is no multiple of num_heads 5"):
        _head(num_heads=5)


def _layer_norm(dtype) -> LayerNorm:
    """A layer norm of 16 channels with random scale and bias."""
    layer, rng = LayerNorm(16, dtype=dtype, rngs=nnx.Rngs(0)), np.random.default_rng(1)
    layer.scale[...], layer.bias[...] = (jnp.asarray(rng.normal(mean, 1, 16), jnp.float32) for mean in (1, 0))
    return layer


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_layer_norm_in_bfloat16_rounds_only_its_input_and_its_result(batch, mean):
    x = jnp.asarray(np.random.default_rng(0).normal(mean, 1, (batch, 5, 16)), jnp.bfloat16)
    expected = _layer_norm(jnp.float32)(x.astype(jnp.float32))
    ours = _layer_norm(jnp.bfloat16)(x)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=2**-8, atol=1e-4)


def test_layer_norm_of_constant_rows_is_its_bias_with_finite_gradients():
    x, layer = jnp.full((2, 3, 16), 300, jnp.bfloat16), _layer_norm(jnp.bfloat16)
    np.testing.assert_array_equal(layer(x), jnp.broadcast_to(layer.bias[...], x.shape).astype(jnp.bfloat16))
    assert jnp.isfinite(jax.grad(lambda x: layer(x).astype(jnp.float32).sum())(x)).all()
