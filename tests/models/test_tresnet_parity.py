"""TResNet against timm: outputs, training-mode outputs and statistics, for the same random weights."""

import jax
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.tresnet import VARIANTS, TResNet, Variant
from aia_jax.training.model_arrays import flat_arrays, split_model
from tests.helpers.references import largest, model_of, our_arrays, random_state, reference, relative_error

PUBLISHED = {"m": 29_340_032, "l": 53_556_256, "xl": 75_779_244, "v2_l": 44_125_824}
SMALL = {v2: Variant(blocks=(1, 1, 2, 1), width=16, basic_stages=0 if v2 else 2) for v2 in (False, True)}
TOLERANCE = 1e-5


class Backbone(nnx.Module):
    """A TResNet under the name that the tables of array names expect."""

    def __init__(self, variant: str | Variant, **options):
        self.backbone = TResNet(variant, **options, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def published(request):
    """A variant's name, a random state dict and our model with its arrays."""
    build = lambda: Backbone(request.param)  # noqa: E731
    state = random_state(build, "tresnet", seed=0)
    return request.param, state, model_of(build, state, "tresnet").backbone


def _images(size: int, batch: int) -> np.ndarray:
    return np.random.default_rng(size).normal(size=(batch, size, size, 3)).astype(np.float32)


def _apply(model: nnx.Module, images: np.ndarray, *, train: bool) -> jax.Array:
    """Features. Training updates the running statistics of the model."""
    with jax.default_matmul_precision("highest"):
        return nnx.jit(lambda model, images: model(images, train=train)[0])(model, images)


def _timm(variant: str | Variant, state: dict, images: np.ndarray, *, train: bool) -> dict[str, np.ndarray]:
    """timm's features, and in training the state dict afterwards."""
    from tests.helpers.torch_oracles import arrays_of, build_tresnet, load, torch

    network = load(build_tresnet(variant), state).train(train)
    with torch.no_grad():
        features = network.body(torch.from_numpy(images.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1).numpy()
    return {"features": features} | (arrays_of(network) if train else {})


@pytest.mark.parametrize("size", [64, 100])
def test_features_equal_timms(published, size):
    variant, state, model = published
    images = _images(size, batch=2)
    ours = _apply(model, images, train=False)
    theirs = reference(f"tresnet/{variant}-{size}", lambda: _timm(variant, state, images, train=False))["features"]
    assert ours.shape == theirs.shape == (2, -(-size // 32), -(-size // 32), model.num_features)
    assert 0.5 < largest(theirs) < 500
    assert relative_error(ours, theirs) <= TOLERANCE


def test_body_has_the_published_number_of_parameters(published):
    name, _, model = published
    assert sum(value.size for value in jax.tree.leaves(split_model(model)[1]["params"])) == PUBLISHED[name]
    assert model.stride == 32
    assert VARIANTS.keys() == PUBLISHED.keys() | {"tiny"}


@pytest.mark.parametrize("input_statistics", [False, True])
@pytest.mark.parametrize("v2", [False, True])
def test_training_mode_equals_timms(v2, input_statistics):
    """Small, because batch statistics amplify float32 rounding in every layer."""
    build = lambda: Backbone(SMALL[v2], input_statistics=input_statistics)  # noqa: E731
    state, images = random_state(build, "tresnet", seed=1), _images(100, batch=4)
    model = model_of(build, state, "tresnet")

    def compute():
        found = _timm(SMALL[v2], state, images, train=True)
        arrays = our_arrays(build, found, "tresnet")
        statistics = {path: value for path, value in arrays.items() if path.endswith((".mean", ".var"))}
        return {"features": found["features"]} | statistics

    theirs = reference(f"tresnet/training-{'v2' if v2 else 'v1'}", compute)
    assert relative_error(_apply(model.backbone, images, train=True), theirs["features"]) <= TOLERANCE
    ours = flat_arrays({"stats": split_model(model)[1]["stats"]})
    assert max(relative_error(value, theirs[path]) for path, value in ours.items()) <= TOLERANCE
