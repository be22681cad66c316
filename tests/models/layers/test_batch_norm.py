"""Norms with what follows them, against the plain formula and JAX's own derivatives of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.layers.batch_norm import BatchNorm, norm_act
from aia_jax.models.layers.common import blur_pool, relu, run_blocks
from aia_jax.models.layers.conv_norm import ConvNorm, SqueezeExcite, linear_moments
from aia_jax.models.layers.norm_act_se import GateOptions, norm_act_gate
from aia_jax.models.layers.squeeze_excite import excite, gate_images

EPSILON = 1e-5


def _normal(*shape: int, mean: float = 0, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 1, shape), jnp.float32)


def _plain(x, weight, bias, slope):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    z = (x - mean) / jnp.sqrt(var + EPSILON) * weight + bias
    return jnp.where(z >= 0, z, slope * z)


def _gate_weights() -> tuple[jax.Array, ...]:
    return _normal(6, 4, seed=3), _normal(4, seed=4), _normal(4, 6, seed=5), _normal(6, seed=6)


def _gated(y, gate_weights):
    kernel1, bias1, kernel2, bias2 = gate_weights
    gate = jax.nn.sigmoid(jax.nn.relu(y.mean((1, 2)) @ kernel1 + bias1) @ kernel2 + bias2)
    return y * gate[:, None, None]


def _close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(np.abs(b).max()))


@pytest.mark.parametrize("blur", [False, True])
@pytest.mark.parametrize("slope", [1.0, 1e-3])
@pytest.mark.parametrize("size", [6, 7])
def test_norm_and_activation_and_their_gradients(blur, slope, size):
    x, weight, bias = _normal(3, size, size, 4, mean=2), _normal(4, seed=1), _normal(4, seed=2)

    def ours(x, weight, bias):
        return norm_act(x, weight, bias, slope, EPSILON, blur)[0]

    def plain(x, weight, bias):
        y = _plain(x, weight, bias, slope)
        return blur_pool(y) if blur else y

    out, pull = jax.vjp(ours, x, weight, bias)
    expected, expected_pull = jax.vjp(plain, x, weight, bias)
    _close(out, expected)
    _close(pull(_normal(*out.shape, seed=3)), expected_pull(_normal(*out.shape, seed=3)))
    _, mean, var = norm_act(x, weight, bias, slope, EPSILON, blur)
    _close((mean, var), (x.mean((0, 1, 2)), x.var((0, 1, 2))))


@pytest.mark.parametrize("slope", [0.1, 1.0])
def test_norm_activation_and_gate_and_their_gradients(slope):
    x, weight, bias = _normal(3, 5, 4, 6, mean=1), _normal(6, seed=1), _normal(6, seed=2)
    gate_weights = _gate_weights()

    def ours(x, weight, bias, gate_weights):
        return norm_act_gate(x, weight, bias, gate_weights, GateOptions(slope, EPSILON))[0]

    def plain(x, weight, bias, gate_weights):
        return _gated(_plain(x, weight, bias, slope), gate_weights)

    out, pull = jax.vjp(ours, x, weight, bias, gate_weights)
    expected, expected_pull = jax.vjp(plain, x, weight, bias, gate_weights)
    _close(out, expected)
    _close(pull(_normal(*out.shape, seed=7)), expected_pull(_normal(*out.shape, seed=7)))


def test_a_gate_by_itself_and_its_gradients():
    x, gate_weights = _normal(3, 5, 4, 6, mean=1), _gate_weights()
    out, pull = jax.vjp(gate_images, x, gate_weights)
    expected, expected_pull = jax.vjp(_gated, x, gate_weights)
    _close(out, expected)
    _close(pull(_normal(*out.shape, seed=7)), expected_pull(_normal(*out.shape, seed=7)))


@pytest.mark.parametrize("mean", [0, 100])
def test_in_bfloat16_the_statistics_are_those_of_the_rounded_values(mean):
    x = _normal(8, 16, 16, 3, mean=mean).astype(jnp.bfloat16)
    y, found, var = norm_act(x, jnp.ones(3), jnp.zeros(3), 1.0, EPSILON, False)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(found, exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-2 if mean else 1e-5)
    assert y.dtype == jnp.bfloat16
    dx = jax.grad(lambda x: norm_act(x, jnp.ones(3), jnp.zeros(3), 0.1, EPSILON, False)[0].astype(jnp.float32).sum())(x)
    assert dx.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(dx, np.float32)).all()


def test_a_constant_in_bfloat16_has_no_negative_variance():
    x = jnp.full((4, 16, 16, 2), 1000 / 3, jnp.bfloat16)
    y, _, var = norm_act(x, jnp.ones(2), jnp.zeros(2), 1.0, EPSILON, False)
    assert (var >= 0).all()
    assert np.isfinite(np.asarray(y, np.float32)).all()


@pytest.mark.parametrize("mean", [0, 1e3])
def test_moments_of_a_linear_map_follow_from_those_of_its_input(mean):
    x, kernel = _normal(4, 6, 6, 5, mean=mean), _normal(7, 5, seed=1)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64).T
    found, var = linear_moments(x, kernel)
    np.testing.assert_allclose(found, exact.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)


def test_gradients_of_a_linear_maps_moments():
    x, kernel, directions = _normal(2, 3, 3, 5), _normal(7, 5, seed=1), _normal(2, 7, seed=2)

    def plain(x, kernel):
        y = x @ kernel.T
        return directions[0] @ y.mean((0, 1, 2)) + directions[1] @ y.var((0, 1, 2))

    def ours(x, kernel):
        mean, var = linear_moments(x, kernel)
        return directions[0] @ mean + directions[1] @ var

    _close(jax.grad(ours, (0, 1))(x, kernel), jax.grad(plain, (0, 1))(x, kernel))


def _trained(input_statistics: bool, dtype=jnp.float32):
    """Output, gradients by input and weights, and running statistics of a widening convolution in training."""
    module = ConvNorm(6, 16, 1, input_statistics=input_statistics, dtype=dtype, rngs=nnx.Rngs(0))
    graphdef, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)

    def apply(x, params):
        merged = nnx.merge(graphdef, params, nnx.clone(stats))
        y = merged(x, train=True)
        return (y.astype(jnp.float32) * _normal(*y.shape, seed=1)).sum(), (y, nnx.state(merged, nnx.BatchStat))

    x = _normal(4, 5, 5, 6, mean=1).astype(dtype)
    grads, (y, stats) = jax.grad(apply, (0, 1), has_aux=True)(x, params)
    return jax.tree.map(lambda a: np.asarray(a, np.float32), (y, stats, grads))


def test_input_statistics_change_nothing():
    _close(_trained(True), _trained(False))


def test_input_statistics_in_bfloat16_err_no_more():
    exact = _trained(False)

    def error(result):
        pairs = zip(jax.tree.leaves(result), jax.tree.leaves(exact), strict=True)
        return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]

    errors, plain = error(_trained(True, jnp.bfloat16)), error(_trained(False, jnp.bfloat16))
    print([f"{a:.4f} {b:.4f}" for a, b in zip(errors, plain, strict=True)])
    assert max(errors) <= 1.2 * max(plain)


def test_input_statistics_are_of_1x1_convolutions_only():
    with pytest.raises(ValueError, match="a 3x3 convolution's statistics do not follow"):
        ConvNorm(4, 8, 3, input_statistics=True, rngs=nnx.Rngs(0))


def test_relu_and_its_gradient():
    x = jnp.asarray([-2.0, -0.0, 0.0, 3.0])
    np.testing.assert_array_equal(relu(x), [0, 0, 0, 3])
    np.testing.assert_array_equal(jax.grad(lambda x: relu(x).sum())(x), [0, 0, 0, 1])
    assert np.isnan(relu(jnp.float32(np.nan)))


def test_excitation_is_two_linear_layers():
    kernel1, bias1, kernel2, means = _normal(4, 3), _normal(3, seed=1), _normal(3, 4, seed=2), _normal(2, 4, seed=3)
    expected = np.maximum(np.asarray(means) @ kernel1 + bias1, 0) @ kernel2
    np.testing.assert_allclose(excite((kernel1, bias1, kernel2), means)[1], expected, rtol=1e-5)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = BatchNorm(3, rngs=rngs)

    def __call__(self, x, *, train):
        return x + self.norm(jnp.sin(x), train=train, slope=0.1)


def test_rematerialised_blocks_give_the_same():
    graphdef, params, stats = nnx.split(nnx.List([Block(nnx.Rngs(0)) for _ in range(3)]), nnx.Param, nnx.BatchStat)

    def run(x, params, remat):
        blocks = nnx.merge(graphdef, params, nnx.clone(stats))
        y = run_blocks(blocks, True, remat, x)
        return jnp.square(y).sum(), nnx.state(blocks, nnx.BatchStat)

    plain, again = (
        jax.jit(jax.value_and_grad(lambda x, p, r=remat: run(x, p, r), (0, 1), has_aux=True))(
            _normal(2, 4, 4, 3), params
        )
        for remat in (False, True)
    )
    _close(again, plain)


def test_a_constant_before_a_gate_stays_finite_in_bfloat16():
    gate = SqueezeExcite(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(1)))
    module = ConvNorm(1, 4, 1, dtype=jnp.bfloat16, rngs=nnx.Rngs(2))
    y = module.gated(jnp.full((4, 28, 28, 1), 37.5, jnp.bfloat16), gate, train=True)
    assert np.isfinite(np.asarray(y, np.float32)).all()
