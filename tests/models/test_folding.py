"""Evaluation folds batch norms into convolutions. Outputs, gradients and statistics stay the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models import efficientnet_lite
from aia_jax.models.backbones import BACKBONES, fold_norms
from aia_jax.models.layers import conv_norm

CONV_NORMS = (conv_norm.ConvNorm, efficientnet_lite.SameConvNorm)


def _unfold(monkeypatch) -> None:
    """Replaces the folded convolution by convolution and norm."""
    for module in CONV_NORMS:
        monkeypatch.setattr(module, "_folded", lambda self, x: self.bn(self.conv(x), train=False))


def _random(shape, path: tuple, rng: np.random.Generator) -> np.ndarray:
    """Weights and statistics with which activations neither vanish nor explode."""
    ranges = {"scale": (0.4, 1.0), "var": (0.6, 1.6)}
    if path[-1] in ranges:
        return rng.uniform(*ranges[path[-1]], shape)
    return rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5 if path[-1] == "kernel" else 0.2, shape)


def _split(build, **options) -> tuple[nnx.GraphDef, dict]:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0), **options)))
    rng = np.random.default_rng(0)
    shapes = [(path, leaf.shape) for path, leaf in nnx.to_flat_state(state)]
    flat = {path: jnp.asarray(_random(shape, path, rng), jnp.float32) for path, shape in shapes}
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(flat))
    return graphdef, state


def _features(graphdef: nnx.GraphDef, state: nnx.State, images: np.ndarray) -> np.ndarray:
    @jax.jit
    def apply(state, images):
        return nnx.merge(graphdef, state)(images, train=False)[0]

    with jax.default_matmul_precision("highest"):
        return np.asarray(apply(state, images), np.float32)


def _images(size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ["tresnet_m", "tresnet_v2_l", "efficientnet_lite0"])
def test_features_stay_the_same_at_full_depth(name, monkeypatch):
    graphdef, state = _split(BACKBONES[name].build)
    folded = _features(graphdef, state, _images(48))
    _unfold(monkeypatch)
    plain = _features(graphdef, state, _images(48))
    assert 0.05 < plain.std() < 50
    assert np.abs(folded - plain).max() <= 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("name", "dtype", "platform"),
    [
        ("tresnet_tiny", "float32", "cpu"),
        ("tresnet_tiny", "float32", "gpu"),
        ("tresnet_tiny", "bfloat16", "cpu"),
        ("efficientnet_lite0", "float32", "cpu"),
    ],
)
def test_folded_once_is_folded_in_each_call(name, dtype, platform, monkeypatch):
    graphdef, state = _split(BACKBONES[name].build, dtype=dtype)
    model = nnx.merge(graphdef, state)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    fold_norms(model)
    monkeypatch.undo()
    assert not jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    kernels = [leaf for path, leaf in nnx.to_flat_state(nnx.state(model)) if path[-1] == "kernel" and leaf.ndim == 4]
    assert kernels
    assert {str(leaf.dtype) for leaf in kernels} == {dtype}
    each_call, once = _features(graphdef, state, _images(48)), _features(*nnx.split(model), _images(48))
    tolerance = 1e-6 if dtype == "float32" else 2**-7  # another layout of the kernel changes the order of sums
    np.testing.assert_allclose(once, each_call, rtol=0, atol=tolerance * np.abs(each_call).max())


def test_bfloat16_loses_little_more_than_without_folding(monkeypatch):
    """The margin is for CPUs, where XLA may keep float32 between convolution and norm."""
    graphdef, state = _split(BACKBONES["tresnet_tiny"].build)
    half, _ = _split(BACKBONES["tresnet_tiny"].build, dtype=jnp.bfloat16)
    exact = _features(graphdef, state, _images(48))
    folded = np.linalg.norm(_features(half, state, _images(48)) - exact)
    _unfold(monkeypatch)
    plain = np.linalg.norm(_features(half, state, _images(48)) - exact)
    assert folded <= 1.4 * plain


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (CONV_NORMS[0], {"in_features": 3, "out_features": 4, "kernel_size": 3}),
        (CONV_NORMS[1], {"in_features": 3, "out_features": 4, "kernel_size": 3, "stride": 2}),
        (CONV_NORMS[1], {"in_features": 4, "out_features": 4, "kernel_size": 5, "depthwise": True}),
    ],
)
def test_gradients_stay_the_same_and_statistics_untouched(module, arguments, monkeypatch):
    graphdef, state = _split(lambda **options: module(**arguments, **options))
    x = jnp.asarray(_images(9)) if arguments["in_features"] == 3 else jnp.ones((2, 9, 9, 4))

    def run() -> tuple:
        def objective(state, x):
            layer = nnx.merge(graphdef, state)
            y = layer(x, train=False)
            return jnp.square(y).sum(), nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))

        return jax.grad(objective, argnums=(0, 1), has_aux=True)(state, x)

    grads, stats = run()
    _unfold(monkeypatch)
    expected, _ = run()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grads, expected)
    kept = nnx.to_pure_dict(nnx.filter_state(state, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, stats, kept)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_evaluation_is_a_convolution_and_a_bias(dtype):
    graphdef, state = _split(lambda **options: conv_norm.ConvNorm(3, 4, 3, dtype=dtype, **options))
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x, train=False))(state, _images(8))
    on_maps = [str(each.primitive) for each in jaxpr.eqns if each.outvars[0].aval.shape == (2, 8, 8, 4)]
    assert on_maps == ["conv_general_dilated", "add"]
