import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.layers.batch_norm import BatchNorm
from aia_jax.models.tresnet import TResNet


@pytest.fixture(scope="module")
def tiny() -> TResNet:
    return TResNet("tiny", rngs=nnx.Rngs(0))


def _outputs(model: TResNet, *shape: int):
    """Shapes of what the model returns for images of a shape."""
    return nnx.eval_shape(lambda model, images: model(images, train=False), model, jnp.zeros(shape))


def test_tiny_has_three_stages_and_stride_16(tiny):
    features, out = _outputs(tiny, 2, 96, 96, 3)
    assert (tiny.stride, tiny.num_features) == (16, 384)
    assert features.shape == (2, 6, 6, 384)
    shapes = {name: value.shape[1:] for name, value in out.items()}
    assert shapes == {"stem": (24, 24, 24), "stage1": (24, 24, 24), "stage2": (12, 12, 48), "stage3": (6, 6, 384)}
    assert sum(value.size for value in jax.tree.leaves(nnx.state(tiny, nnx.Param))) == 390_328


def test_odd_feature_sizes_round_up_to_at_least_one(tiny):
    assert _outputs(tiny, 1, 100, 36, 3)[0].shape == (1, 7, 3, 384)
    assert _outputs(tiny, 1, 12, 12, 3)[0].shape == (1, 1, 1, 384)  # the smallest image


def test_the_last_scale_of_every_block_starts_at_zero(tiny):
    scales = {
        path[:-1]: float(abs(module.scale[...]).max())
        for path, module in nnx.iter_modules(tiny)
        if isinstance(module, BatchNorm)
    }
    at_zero = {path for path, scale in scales.items() if scale == 0}
    last = {0: "conv2", 1: "conv2", 2: "conv3"}
    expected = {("stages", i, j, last[i]) for i, stage in enumerate(tiny.stages) for j in range(len(stage))}
    assert at_zero == expected


def test_convolutions_start_kaiming_normal_over_fan_out(tiny):
    kernel = tiny.stages[2][0].conv2.conv.kernel[...]
    assert kernel.shape == (96, 3, 3, 96)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 96)), rtol=0.02)


@pytest.mark.parametrize("options", [{}, {"input_statistics": True, "remat": True}])
def test_weights_in_bfloat16_have_gradients_in_bfloat16(options):
    model = TResNet("tiny", **options, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        features, _ = nnx.merge(graphdef, params, nnx.clone(rest))(jnp.ones((2, 48, 48, 3)), train=True)
        return jnp.square(features.astype(jnp.float32)).sum()

    for grad in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert grad.dtype == jnp.bfloat16
        assert np.isfinite(np.asarray(grad, np.float32)).all()
