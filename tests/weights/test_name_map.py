"""Identification and strict conversion in both directions, with small and full-size models of PyTorch."""

import numpy as np
import pytest
from flax import nnx

from aia_jax.models.efficientnet_lite import EfficientNetLite
from aia_jax.models.tresnet import Variant
from aia_jax.utils.errors import InputError
from aia_jax.weights import name_map
from aia_jax.weights.load import read_torch_state
from aia_jax.weights.torch_archive import write_archive
from aia_jax.weights.torch_files import write_torch_file
from aia_jax.weights.torch_state import identify_state
from tests.helpers.references import random_state, reference, relative_error, shapes_of
from tests.helpers.torch_state_files import (
    GENERATIONS,
    Backbone,
    assert_same_arrays,
    builder,
    convert,
    digest,
    plain,
    signed_state,
    wrapped,
)

LABELS = 5
HEAD = {"hidden_size": 16, "num_heads": 2, "feedforward_size": 24, "dropout": 0.0}
SMALL = {v2: Variant(blocks=(1, 1, 2, 1), width=16, basic_stages=0 if v2 else 2) for v2 in (False, True)}


def small_state(system, *, v2=False, **options):
    """A state dict with signed scales, and the shapes of our arrays."""
    build = builder(system, SMALL[v2], LABELS, **HEAD, **options)
    return signed_state(build, LABELS if system == "backbone" else 0), shapes_of(build)


def assert_fits_torch(key, state, build):
    """Asserts that `state` has the names and shapes of the torch model that `build(torch_oracles)` returns."""

    def compute():
        from tests.helpers import torch_oracles

        return {"digest": digest(torch_oracles.arrays_of(torch_oracles.load(build(torch_oracles), state)))}

    assert relative_error(digest(state), reference(f"names/{key}", compute)["digest"]) == 0


@pytest.mark.parametrize("v2", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("system", ["annotator", "classifier", "backbone"])
def test_generations_give_the_same_arrays(tmp_path, system, v2):
    state, shapes = small_state(system, v2=v2)
    assert_fits_torch(
        f"{system}-{'v2' if v2 else 'v1'}",
        plain(state),
        lambda torch: torch.build_torch_model(system, torch.build_tresnet(SMALL[v2]), LABELS, **HEAD),
    )
    converted = {}
    for generation in GENERATIONS:
        path = tmp_path / f"{generation.replace(' ', '')}.pth"
        write_archive(path, wrapped(state, generation))
        torch_state, converted[generation] = convert(path, shapes)
        assert torch_state.system == system
        assert torch_state.generation == ("timm >= 0.9" if generation == "timm >= 0.9" else "InPlace-ABN")
    expected = converted.pop("timm >= 0.9")
    assert expected.keys() == shapes.keys()
    for arrays in converted.values():
        assert_same_arrays(arrays, expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("system", ["annotator", "classifier", "backbone"])
def test_conversion_in_both_directions_keeps_every_bit(tmp_path, system, suffix):
    options = {"self_attention": True, "num_layers": 2}
    state, shapes = small_state(system, **options)
    path, state = tmp_path / f"a{suffix}", plain(state)
    write_torch_file(path, state)
    _, arrays = convert(path, shapes)
    back = name_map.to_torch(arrays, system=system, family="tresnet")
    assert_same_arrays(back, {name: value for name, value in state.items() if not name.startswith("head.fc.")})
    num_labels = 0 if system == "backbone" else LABELS
    assert_fits_torch(
        f"{system}-back",
        back,
        lambda torch: torch.build_torch_model(system, torch.build_tresnet(SMALL[False]), num_labels, **HEAD, **options),
    )


def annotator_file(tmp_path, change):
    state, shapes = small_state("annotator")
    content = wrapped(state, "timm <= 0.6")
    change(content)
    write_archive(tmp_path / "a.pth", content)
    return tmp_path / "a.pth", shapes


def test_every_problem_is_listed_with_the_nearest_names(tmp_path):
    def change(content):
        content["backbone.features.0.layer1.0.conv1.0.wieght"] = content.pop(
            "backbone.features.0.layer1.0.conv1.0.weight"
        )
        content["head.extra"] = np.ones(3, np.float32)
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
    more = {f"x{number}": np.ones(1, np.float32) for number in range(30)}
    path, shapes = annotator_file(tmp_path, lambda content: content.update(more))
    with pytest.raises(InputError, match=r"left over: x26\n  \.\.\. and 10 more$") as caught:
        convert(path, shapes)
    assert str(caught.value).count("left over: x") == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("head.transformer.decoder.norm.bias"), "missing: head.transformer.decoder.norm.bias"),
        # Stage 4 has no squeeze-and-excitation.
        (
            lambda c: c.update({"backbone.features.0.layer4.0.se.fc1.weight": np.ones(2)}),
            "left over: backbone.features.0.layer4.0.se.fc1.weight",
        ),
        (lambda c: c.update({"conv1.conv.weight": np.ones(2)}), "left over: conv1.conv.weight"),
        (
            lambda c: c.update({"backbone.features.0.layer2.0.conv1.0.weight": np.ones(2)}),
            r"layer2\.0\.conv1\.0\.0\.weight and .*layer2\.0\.conv1\.0\.weight are both names of one array",
        ),
        (
            lambda c: c.update(
                {"backbone.features.0.layer1.0.conv2.bn.weight": c.pop("backbone.features.0.layer1.0.conv2.1.weight")}
            ),
            "left over: backbone.features.0.layer1.0.conv2.bn.weight",
        ),
        (lambda c: c.update({"head.b": c["head.b"].astype(np.int8)}), "head.b: other type: int8 in the file"),
        (lambda c: c.update({"head.b": c["head.b"].astype("c8")}), "head.b: other type: complex64 in the file"),
        (lambda c: c["backbone.features.0.conv1.1.running_var"].fill(-1), "conv1.1.running_var: variances below 0"),
    ],
    ids=["missing", "unknown", "stray", "twice", "mixed", "int8", "complex", "variance"],
)
def test_missing_unknown_and_unfit_arrays_are_refused(tmp_path, change, message):
    path, shapes = annotator_file(tmp_path, change)
    with pytest.raises(InputError, match=message):
        convert(path, shapes)


def test_an_unknown_model_is_refused(tmp_path):
    write_torch_file(tmp_path / "a.pth", {"layers.0.weight": np.ones(2), "fc.bias": np.ones(1)})
    with pytest.raises(InputError, match=r"a\.pth holds no model that is known here: .* layers\.0\.weight, fc\.bias"):
        read_torch_state(tmp_path / "a.pth")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_converts_from_timm_and_back(number):
    build = lambda: Backbone(EfficientNetLite(str(number), rngs=nnx.Rngs(0)))  # noqa: E731
    state = random_state(build, "efficientnet_lite", seed=number)
    state |= {"classifier.weight": np.ones((3, 1280), np.float32), "classifier.bias": np.ones(3, np.float32)}
    name = f"tf_efficientnet_lite{number}"
    assert_fits_torch(name, state, lambda torch: torch.timm.create_model(name, num_classes=3))
    torch_state = identify_state(state, "timm")
    assert (torch_state.system, torch_state.family) == ("backbone", "efficientnet_lite")
    assert torch_state.head.keys() == {"weight", "bias"}
    arrays = name_map.from_torch(torch_state, shapes_of(build), "timm")
    back = name_map.to_torch(arrays, system="backbone", family="efficientnet_lite")
    assert_same_arrays(back, {name: value for name, value in state.items() if not name.startswith("classifier.")})
