"""Identification and strict conversion in both directions, with small and full-size models of PyTorch."""

import numpy as np
import pytest
from flax import nnx

from aia_jax.models.efficientnet_lite import EfficientNetLite
from aia_jax.training.model_arrays import flat_arrays, split_model
from aia_jax.utils.errors import InputError
from aia_jax.weights import name_map
from aia_jax.weights.load import read_torch_state
from aia_jax.weights.torch_files import write_torch_file
from aia_jax.weights.torch_state import identify_state
from tests.helpers.torch_oracles import (
    abstract_model,
    arrays_of,
    assert_same_arrays,
    build_small_tresnet,
    build_torch_model,
    torch,
    torch_models,
)
from tests.helpers.torch_state_files import GENERATIONS, convert, randomized, wrapped

LABELS = 5
HEAD = {"hidden_size": 16, "num_heads": 2, "feedforward_size": 24, "dropout": 0.0}


def build_small_pair(system, *, v2=False, **options):
    """The torch model with random weights, its signed scales, and the shapes of our arrays."""
    torch.manual_seed(0)
    tresnet, variant = build_small_tresnet(v2=v2)
    theirs = build_torch_model(system, tresnet, LABELS, **HEAD, **options)
    _, weights = abstract_model(system, variant, LABELS, **HEAD, **options)
    shapes = {path: leaf.shape for path, leaf in flat_arrays(weights).items()}
    if system == "backbone":
        shapes = {path: shape for path, shape in shapes.items() if path.startswith("backbone.")}
    return theirs, randomized(theirs), shapes


@pytest.mark.parametrize("v2", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("system", ["annotator", "classifier", "backbone"])
def test_generations_give_the_same_arrays(tmp_path, system, v2):
    theirs, scales, shapes = build_small_pair(system, v2=v2)
    converted = {}
    for generation in GENERATIONS:
        path = tmp_path / f"{generation.replace(' ', '')}.pth"
        torch.save(wrapped(theirs, generation, scales), path)
        torch_state, converted[generation] = convert(path, shapes)
        assert torch_state.system == system
        assert torch_state.generation == ("timm >= 0.9" if generation == "timm >= 0.9" else "InPlace-ABN")
    reference = converted.pop("timm >= 0.9")
    assert reference.keys() == shapes.keys()
    for arrays in converted.values():
        assert_same_arrays(arrays, reference)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("system", ["annotator", "classifier", "backbone"])
def test_conversion_in_both_directions_keeps_every_bit(tmp_path, system, suffix):
    theirs, scales, shapes = build_small_pair(system, self_attention=True, num_layers=2)
    path = tmp_path / f"a{suffix}"
    state = arrays_of(wrapped(theirs, "timm >= 0.9", scales))
    write_torch_file(path, state)
    _, arrays = convert(path, shapes)
    back = name_map.to_torch(arrays, system=system, family="tresnet")
    assert_same_arrays(back, {name: value for name, value in state.items() if not name.startswith("head.fc.")})
    if system == "backbone":
        theirs.reset_classifier(0)
    theirs.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in back.items()}, strict=True)


def annotator_file(tmp_path, change):
    theirs, scales, shapes = build_small_pair("annotator")
    content = wrapped(theirs, "timm <= 0.6", scales)
    change(content)
    torch.save(content, tmp_path / "a.pth")
    return tmp_path / "a.pth", shapes


def test_every_problem_is_listed_with_the_nearest_names(tmp_path):
    def change(content):
        content["backbone.features.0.layer1.0.conv1.0.wieght"] = content.pop(
            "backbone.features.0.layer1.0.conv1.0.weight"
        )
        content["head.extra"] = torch.ones(3)
        content["head.w"] = content["head.w"][:, :3]
        content.pop("head.linear_projection.bias")

    path, shapes = annotator_file(tmp_path, change)
    with pytest.raises(InputError) as caught:
        convert(path, shapes)
    message = str(caught.value)
    assert message.startswith("a.pth does not fit this config; it holds a whole annotator (TResNet of 1 1 2 1 blocks")
    assert (
        "missing: backbone.features.0.layer1.0.conv1.conv.weight [16, 16, 3, 3]; "
        "nearest: backbone.features.0.layer1.0.conv1.0.wieght" in message
    )
    assert "missing: head.linear_projection.bias [16]" in message
    assert "head.w: other shape: [1, 3, 16] in the file, [1, 5, 16] in the model" in message
    assert "left over: head.extra" in message
    assert message.count("\n") == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("head.transformer.decoder.norm.bias"), "missing: head.transformer.decoder.norm.bias"),
        # Stage 4 has no squeeze-and-excitation.
        (
            lambda c: c.update({"backbone.features.0.layer4.0.se.fc1.weight": torch.ones(2)}),
            "left over: backbone.features.0.layer4.0.se.fc1.weight",
        ),
        (lambda c: c.update({"conv1.conv.weight": torch.ones(2)}), "left over: conv1.conv.weight"),
        (
            lambda c: c.update({"backbone.features.0.layer2.0.conv1.0.weight": torch.ones(2)}),
            r"layer2\.0\.conv1\.0\.0\.weight and .*layer2\.0\.conv1\.0\.weight are both names of one array",
        ),
        (
            lambda c: c.update(
                {"backbone.features.0.layer1.0.conv2.bn.weight": c.pop("backbone.features.0.layer1.0.conv2.1.weight")}
            ),
            "left over: backbone.features.0.layer1.0.conv2.bn.weight",
        ),
        (lambda c: c.update({"head.b": c["head.b"].to(torch.int8)}), "head.b: other type: int8 in the file"),
        (lambda c: c.update({"head.b": c["head.b"].to(torch.complex64)}), "head.b: other type: complex64 in the file"),
        (lambda c: c["backbone.features.0.conv1.1.running_var"].fill_(-1), "conv1.1.running_var: variances below 0"),
    ],
    ids=["missing", "unknown", "stray", "twice", "mixed", "int8", "complex", "variance"],
)
def test_missing_unknown_and_unfit_arrays_are_refused(tmp_path, change, message):
    path, shapes = annotator_file(tmp_path, change)
    with pytest.raises(InputError, match=message):
        convert(path, shapes)


def test_an_unknown_model_is_refused(tmp_path):
    torch.save({"layers.0.weight": torch.ones(2), "fc.bias": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth holds no model that is known here: .* layers\.0\.weight, fc\.bias"):
        read_torch_state(tmp_path / "a.pth")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_converts_from_timm_and_back(number):
    model = nnx.eval_shape(lambda: EfficientNetLite(str(number), rngs=nnx.Rngs(0)))
    shapes = {f"backbone.{path}": leaf.shape for path, leaf in flat_arrays(split_model(model)[1]).items()}
    network = torch_models.timm.create_model(f"tf_efficientnet_lite{number}", num_classes=3)
    state = arrays_of(network.state_dict())
    torch_state = identify_state(state, "timm")
    assert (torch_state.system, torch_state.family) == ("backbone", "efficientnet_lite")
    assert torch_state.head.keys() == {"weight", "bias"}
    arrays = name_map.from_torch(torch_state, shapes, "timm")
    back = name_map.to_torch(arrays, system="backbone", family="efficientnet_lite")
    assert_same_arrays(back, {name: value for name, value in state.items() if not name.startswith("classifier.")})
