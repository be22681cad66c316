from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aia_jax.models.layers.batch_norm import BatchNorm
from aia_jax.models.layers.common import average_pool, blur_pool, dropout, relu, run_blocks, space_to_depth
from aia_jax.models.layers.conv import convolve
from aia_jax.models.tresnet import BasicBlock


def _normal(shape: tuple[int, ...], mean: float = 0, std: float = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, std, shape).astype(np.float32)


@pytest.mark.parametrize(("mean", "outlier"), [(0, 0), (1e3, 0), (1e4, 0), (5, 1e4)])
def test_batch_norm_is_right_for_large_means_and_an_outlying_pixel(mean, outlier):
    x = _normal((8, 12, 12, 3), mean)
    x[:, 6, 6] += outlier
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    y = norm(jnp.asarray(x), train=True)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5 + 2e-7 * mean)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * exact.var((0, 1, 2), ddof=1), rtol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)


def test_batch_norm_of_a_constant_is_its_bias():
    norm = BatchNorm(2, rngs=nnx.Rngs(0))
    norm.bias[...] = jnp.asarray([1.0, -2.0])
    y = norm(jnp.full((2, 4, 4, 2), 1e4 / 3), train=True)
    np.testing.assert_array_equal(y, np.broadcast_to([1.0, -2.0], y.shape))


def test_batch_norm_takes_the_statistics_of_the_global_batch():
    x = _normal((8, 4, 4, 3), 100) * np.arange(1, 9)[:, None, None, None]
    graphdef, state = nnx.split(BatchNorm(3, rngs=nnx.Rngs(0)))

    @jax.jit
    def apply(state, x):
        norm = nnx.merge(graphdef, state)
        return norm(x, train=True), norm.mean[...], norm.var[...]

    sharding = NamedSharding(Mesh(np.asarray(jax.devices()[:8]), ("data",)), PartitionSpec("data"))
    for whole, sharded in zip(apply(state, x), apply(state, jax.device_put(x, sharding)), strict=True):
        np.testing.assert_allclose(whole, sharded, rtol=1e-5, atol=1e-6)


def test_batch_norm_in_bfloat16_keeps_float32_statistics():
    x = jnp.asarray(_normal((8, 8, 8, 2), 10)).astype(jnp.bfloat16)
    norm = BatchNorm(2, momentum=1.0, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert norm(x, train=True).dtype == jnp.bfloat16
    assert norm.var[...].dtype == norm.mean[...].dtype == norm.scale[...].dtype == jnp.float32
    np.testing.assert_allclose(norm.mean[...], np.asarray(x, np.float64).mean((0, 1, 2)), rtol=1e-6)


def test_evaluation_uses_and_keeps_the_running_statistics():
    norm = BatchNorm(1, rngs=nnx.Rngs(0))
    norm.mean[...], norm.var[...] = jnp.asarray([3.0]), jnp.asarray([4.0 - 1e-5])
    np.testing.assert_allclose(norm(jnp.full((1, 1, 1, 1), 7.0), train=False), [[[[2.0]]]], rtol=1e-6)
    assert norm.mean[...] == 3


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 7, 5, 3), (1, 2, 3, 1), (1, 3, 2, 1)])
def test_blur_pool_is_the_strided_reflected_binomial_filter(shape):
    x = _normal(shape)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    height, width = shape[1:3]
    expected = sum(weights[i, j] * padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3))
    np.testing.assert_allclose(blur_pool(jnp.asarray(x)), expected[:, ::2, ::2], atol=1e-6)


def test_blur_pool_refuses_what_cannot_be_reflected():
    with pytest.raises(ValueError, match="at least 2 positions, got 1"):
        blur_pool(jnp.zeros((1, 4, 1, 1)))


def test_average_pool_counts_no_padding():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(average_pool(x)[0, :, :, 0], [[2.0, 3.5], [6.5, 8.0]])
    np.testing.assert_array_equal(average_pool(x[:, :2, :2])[0, :, :, 0], [[2.0]])


def test_space_to_depth_orders_row_column_channel():
    x = jnp.arange(2 * 4 * 3).reshape(1, 2, 4, 3)
    y = space_to_depth(x, 2)
    assert y.shape == (1, 1, 2, 12)
    np.testing.assert_array_equal(y[0, 0, 1], [*x[0, 0, 2], *x[0, 0, 3], *x[0, 1, 2], *x[0, 1, 3]])


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    x = jnp.ones((400, 500))
    y = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.7)}
    assert abs((y == 0).mean() - 0.3) < 0.005
    np.testing.assert_array_equal(y, dropout(x, 0.3, jax.random.key(0)))
    assert dropout(x, 0.3, None) is x
    assert dropout(x, 0, jax.random.key(0)) is x


@pytest.mark.parametrize("layout", ["OHWI", "HWIO"])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_1x1_convolution_is_a_product_on_cpus_alone(platform, layout):
    x, kernel = _normal((2, 3, 3, 5)), _normal((7, 1, 1, 5))
    laid_out = kernel if layout == "OHWI" else kernel.transpose(1, 2, 3, 0)
    traced = jax.jit(lambda x, kernel: convolve(x, kernel, layout)).trace(x, laid_out)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.dot_general" in text, "stablehlo.convolution" in text) == (platform == "cpu", platform != "cpu")
    np.testing.assert_allclose(convolve(x, laid_out, layout), x @ kernel[:, 0, 0].T, rtol=1e-5, atol=1e-6)


def test_relu_and_its_gradient():
    x = jnp.asarray([-2.0, -0.0, 0.0, 3.0])
    np.testing.assert_array_equal(relu(x), [0, 0, 0, 3])
    np.testing.assert_array_equal(jax.grad(lambda x: relu(x).sum())(x), [0, 0, 0, 1])
    assert np.isnan(relu(jnp.float32(np.nan)))


def test_rematerialised_blocks_give_the_same_values_gradients_and_statistics():
    options = {"stride": 1, "slope": 0.1, "use_se": True, "input_statistics": False}
    options |= {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    blocks = nnx.List([BasicBlock(3, 3, **options) for _ in range(2)])
    graphdef, params, stats = nnx.split(blocks, nnx.Param, nnx.BatchStat)

    @partial(jax.jit, static_argnames="remat")
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(x, params, remat):
        blocks = nnx.merge(graphdef, params, nnx.clone(stats))
        return jnp.square(run_blocks(blocks, True, remat, x)).sum(), nnx.state(blocks, nnx.BatchStat)

    x = jnp.asarray(_normal((2, 4, 4, 3)))
    plain, again = (jax.tree.leaves(run(x, params, remat=remat)) for remat in (False, True))
    for a, b in zip(again, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(float(jnp.abs(b).max()), 1e-3))
