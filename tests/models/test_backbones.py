import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.efficientnet_lite import EfficientNetLite
from aia_jax.models.tresnet import TResNet
from aia_jax.utils.errors import InputError


@pytest.mark.parametrize(
    ("build", "variant", "train", "tolerance"),
    [(TResNet, "tiny", True, 0.02), pytest.param(EfficientNetLite, "0", False, 0.05, marks=pytest.mark.slow)],
)
def test_bfloat16_features_stay_near_float32_ones(build, variant, train, tolerance):
    state = nnx.state(build(variant, rngs=nnx.Rngs(0)))
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))

    def apply(dtype):
        model = nnx.eval_shape(lambda: build(variant, dtype=dtype, rngs=nnx.Rngs(0)))
        assert {value.dtype for value in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(jnp.float32)}
        return jax.jit(lambda s, x: nnx.merge(nnx.graphdef(model), s)(x, train=train)[0])(state, images)

    full, half = apply(jnp.float32), apply(jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    assert np.linalg.norm(half.astype(jnp.float32) - full) < tolerance * np.linalg.norm(full)


@pytest.mark.parametrize(
    ("build", "variant", "shape", "match"),
    [
        (TResNet, "tiny", (97, 96), "height 97: TResNet takes multiples of 4 from 12 on"),
        (TResNet, "tiny", (96, 8), "width 8: TResNet takes multiples of 4 from 12 on"),
        (EfficientNetLite, "0", (31, 96), "height 31: EfficientNet-Lite takes images from 32 pixels on"),
        (EfficientNetLite, "0", (96, 8), "width 8: EfficientNet-Lite takes images from 32 pixels on"),
    ],
)
def test_unusable_image_sizes_are_named(build, variant, shape, match):
    model = nnx.eval_shape(lambda: build(variant, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=f"image {match}"):
        model(jnp.zeros((1, *shape, 3)), train=False)
