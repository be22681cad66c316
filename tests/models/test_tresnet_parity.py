"""TResNet against timm: outputs, training-mode outputs and statistics, for copied random weights."""

import jax
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.tresnet import VARIANTS, TResNet, Variant
from tests.helpers.torch_oracles import (
    build_small_tresnet,
    build_timm_body,
    copy_weights,
    flat_state,
    randomize,
    relative_error,
    torch,
)

PUBLISHED = {"m": 29_340_032, "l": 53_556_256, "xl": 75_779_244, "v2_l": 44_125_824}
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def pair(request):
    """A variant's name, timm's body and our model with the same random weights."""
    body = build_timm_body(request.param)
    randomize(body, seed=0)
    return request.param, body, _copied(body, request.param)


def _copied(body: torch.nn.Module, variant: str | Variant, **options) -> TResNet:
    model = nnx.eval_shape(lambda: TResNet(variant, **options, rngs=nnx.Rngs(0)))
    copy_weights(body, model, "backbone")
    return model


def _images(size: int, batch: int) -> np.ndarray:
    return np.random.default_rng(size).normal(size=(batch, size, size, 3)).astype(np.float32)


def _apply(model: nnx.Module, images: np.ndarray, *, train: bool) -> jax.Array:
    """Features. Training updates the running statistics of the model."""
    with jax.default_matmul_precision("highest"):
        return nnx.jit(lambda model, images: model(images, train=train)[0])(model, images)


def _theirs(body: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return body(torch.from_numpy(images.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", [64, 100])
def test_features_equal_timms(pair, size):
    _, body, model = pair
    images = _images(size, batch=2)
    ours = _apply(model, images, train=False)
    theirs = _theirs(body.eval(), images)
    assert ours.shape == theirs.shape == (2, -(-size // 32), -(-size // 32), model.num_features)
    assert 0.05 < theirs.std() < 50
    assert relative_error(ours, theirs) <= TOLERANCE


def test_body_has_the_published_number_of_parameters(pair):
    name, _, model = pair
    assert sum(value.size for value in flat_state(model, nnx.Param).values()) == PUBLISHED[name]
    assert model.stride == 32
    assert VARIANTS.keys() == PUBLISHED.keys() | {"tiny"}


@pytest.mark.parametrize("input_statistics", [False, True])
@pytest.mark.parametrize("v2", [False, True])
def test_training_mode_equals_timms(v2, input_statistics):
    """Small, because batch statistics amplify float32 rounding in every layer."""
    tresnet, variant = build_small_tresnet(v2=v2)
    body = tresnet.body.train()
    randomize(body, seed=1)
    model = _copied(body, variant, input_statistics=input_statistics)
    images = _images(100, batch=4)
    assert relative_error(_apply(model, images, train=True), _theirs(body, images)) <= TOLERANCE
    ours, theirs = flat_state(model, nnx.BatchStat), flat_state(_copied(body, variant), nnx.BatchStat)
    assert max(relative_error(ours[path], theirs[path]) for path in theirs) <= TOLERANCE
