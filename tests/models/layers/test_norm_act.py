"""`norm_act` and `linear_moments`, compared with their plain formulas and JAX's derivatives of these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from aia_jax.models.layers.common import blur_pool
from aia_jax.models.layers.conv_norm import ConvNorm
from aia_jax.models.layers.input_statistics import linear_moments
from aia_jax.models.layers.norm_act import moments, norm_act
from aia_jax.models.layers.squeeze_excite import SqueezeExcite, squeeze_excite_gate
from aia_jax.training.sharding import data_mesh

EPSILON = 1e-5


def _normal(*shape: int, mean: float = 0, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 1, shape), jnp.float32)


def _close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(np.abs(b).max()))


VECTORS = _normal(6, seed=1), _normal(6, seed=2)
SE_WEIGHTS = _normal(6, 4, seed=3), _normal(4, seed=4), _normal(4, 6, seed=5), _normal(6, seed=6)


def plain(x, weight, bias, se_weights, slope, epsilon, blur):
    """The result of `norm_act` by the plain formula."""
    mean, var = moments(x)
    y = jax.nn.leaky_relu((x - mean) * jax.lax.rsqrt(var + epsilon) * weight + bias, slope)
    if blur:
        y = blur_pool(y)
    elif se_weights is not None:
        y = y * squeeze_excite_gate(y.mean(axis=(1, 2)), se_weights)[:, None, None]
    return y, mean, var


@pytest.mark.parametrize("slope", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize(
    ("blur", "se_weights", "size"), [(False, None, 6), (True, None, 6), (True, None, 7), (False, SE_WEIGHTS, 5)]
)
def test_norm_activation_and_what_follows_equal_the_plain_formula(slope, blur, se_weights, size):
    x = _normal(3, size, size, 6, mean=2)

    def run(function):
        out, pull = jax.vjp(lambda *arrays: function(*arrays, slope, EPSILON, blur), x, *VECTORS, se_weights)
        return out, pull((_normal(*out[0].shape, seed=7), jnp.zeros(6), jnp.zeros(6)))

    _close(run(norm_act), run(plain))


@pytest.mark.parametrize("se_weights", [None, SE_WEIGHTS])
def test_gradients_on_four_devices_equal_those_on_one(se_weights):
    x, dy = _normal(8, 5, 4, 6, seed=5), _normal(8, 5, 4, 6, seed=6)

    def gradients(num_devices):
        mesh = data_mesh(jax.devices()[:num_devices])
        rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

        def run(x, dy):
            y, pull = jax.vjp(lambda x: norm_act(x, *VECTORS, se_weights, 0.1, EPSILON, False)[0], x)
            return y, pull(dy)[0]

        return jax.jit(run, in_shardings=(rows, rows))(x, dy)

    _close(gradients(4), gradients(1))


@pytest.mark.parametrize("mean", [0, 100])
def test_in_bfloat16_the_statistics_are_those_of_the_rounded_values(mean):
    x = _normal(8, 16, 16, 3, mean=mean).astype(jnp.bfloat16)

    def normalise(x, slope):
        return norm_act(x, jnp.ones(3), jnp.zeros(3), None, slope, EPSILON, False)

    y, found, var = normalise(x, 1.0)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(found, exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-2 if mean else 1e-5)
    assert y.dtype == jnp.bfloat16
    dx = jax.grad(lambda x: normalise(x, 0.1)[0].astype(jnp.float32).sum())(x)
    assert dx.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(dx, np.float32)).all()


@pytest.mark.parametrize("with_gate", [False, True])
def test_a_constant_in_bfloat16_stays_finite(with_gate):
    gate = SqueezeExcite(4, 4, rngs=nnx.Rngs(0))
    module = ConvNorm(1, 4, 1, dtype=jnp.bfloat16, rngs=nnx.Rngs(2))
    y = module(jnp.full((4, 28, 28, 1), 1000 / 3, jnp.bfloat16), train=True, se=gate if with_gate else None)
    assert (module.bn.var[...] >= 0).all()
    assert np.isfinite(np.asarray(y, np.float32)).all()


def test_moments_of_a_linear_map_follow_from_those_of_its_input():
    x, kernel, directions = _normal(90, 5, mean=1), _normal(7, 5, seed=1), _normal(2, 7, seed=2)

    def run(function):
        out, pull = jax.vjp(function, x, kernel)
        return out, pull(tuple(directions))

    def plain(x, kernel):
        y = x @ kernel.T
        return y.mean(axis=0), y.var(axis=0)

    _close(run(linear_moments), run(plain))


def _train_step(input_statistics: bool, dtype=jnp.float32):
    """Output, running statistics, and gradients by input and weights of a widening convolution in training."""
    module = ConvNorm(6, 16, 1, input_statistics=input_statistics, dtype=dtype, rngs=nnx.Rngs(0))
    graphdef, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)

    def apply(x, params):
        merged = nnx.merge(graphdef, params, nnx.clone(stats))
        y = merged(x, train=True)
        return (y.astype(jnp.float32) * _normal(*y.shape, seed=1)).sum(), (y, nnx.state(merged, nnx.BatchStat))

    x = _normal(4, 5, 5, 6, mean=1).astype(dtype)
    grads, (y, stats) = jax.grad(apply, (0, 1), has_aux=True)(x, params)
    return jax.tree.map(lambda a: np.asarray(a, np.float32), (y, stats, grads))


def test_statistics_from_the_input_change_nothing():
    _close(_train_step(True), _train_step(False))


def test_statistics_from_the_input_lose_no_precision_in_bfloat16():
    exact = _train_step(False)

    def errors(result):
        pairs = zip(jax.tree.leaves(result), jax.tree.leaves(exact), strict=True)
        return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]

    ours, plain = errors(_train_step(True, jnp.bfloat16)), errors(_train_step(False, jnp.bfloat16))
    assert max(ours) <= 1.2 * max(plain)


def test_statistics_from_the_input_need_a_1x1_convolution():
    with pytest.raises(ValueError, match="need a 1x1 convolution, not 3x3"):
        ConvNorm(4, 8, 3, input_statistics=True, rngs=nnx.Rngs(0))
