"""Full-size models in files of all three generations: the logits equal those of PyTorch."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.annotator import Annotator, ClassifierHead
from aia_jax.models.attention_pooling import AttentionPooling
from aia_jax.models.tresnet import TResNet
from aia_jax.training.model_arrays import flat_arrays, merge_model, replace_arrays, split_model
from aia_jax.weights import name_map
from aia_jax.weights.torch_files import read_torch_file
from aia_jax.weights.torch_state import identify_state
from tests.helpers.torch_oracles import build_torch_annotator, relative_error, timm_tresnet, torch, torch_models
from tests.helpers.torch_state_files import GENERATIONS, randomized, wrapped

LABELS = 260


def build_ours(variant: str, head: str | None):
    def build():
        backbone = TResNet(variant, rngs=nnx.Rngs(0))
        if head is None:
            return backbone
        kind = AttentionPooling if head == "attention" else ClassifierHead
        return Annotator(backbone, kind(LABELS, backbone.num_features, rngs=nnx.Rngs(0)))

    return split_model(nnx.eval_shape(build))


def build_theirs(variant: str, head: str | None):
    torch.manual_seed(0)
    tresnet = getattr(timm_tresnet, f"tresnet_{variant}")(num_classes=11221 if head is None else 0)
    if head == "attention":
        return build_torch_annotator(tresnet, LABELS)
    return tresnet if head is None else torch_models.TorchClassifier(tresnet.body, LABELS, tresnet.num_features)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "head", "size"),
    [("m", "attention", 448), ("v2_l", "attention", 576), ("m", "gap", 448), ("v2_l", None, 448)],
    ids=["annotator-m", "annotator-v2_l", "classifier-m", "backbone-21k"],
)
def test_logits_equal_those_of_torch(tmp_path, variant, head, size):
    theirs = build_theirs(variant, head)
    scales = randomized(theirs)
    prefix = {"attention": "backbone.features.0.", "gap": "net.body.", None: "body."}[head]
    scales = {name.removeprefix(prefix): scale for name, scale in scales.items()}
    assert min(scale.min() for scale in scales.values()) < -0.9
    graphdef, weights = build_ours(variant, head)
    shapes = {path: leaf.shape for path, leaf in flat_arrays(weights).items()}
    if head is None:
        shapes = {f"backbone.{path}": shape for path, shape in shapes.items()}
    converted = []
    for generation in GENERATIONS:
        torch.save(wrapped(theirs, generation, scales), tmp_path / "a.pth")
        torch_state = identify_state(read_torch_file(tmp_path / "a.pth")[0], "a.pth")
        converted.append(name_map.from_torch(torch_state, shapes, "a.pth"))
    for arrays in converted[1:]:
        assert all(np.array_equal(arrays[name], value) for name, value in converted[0].items())

    images = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    arrays = {path.removeprefix("backbone.") if head is None else path: value for path, value in converted[0].items()}
    model = partial(merge_model, graphdef)

    @jax.jit
    def forward(weights, images):
        return model(weights)(images, train=False)[0]

    ours = forward(replace_arrays(weights, arrays), images)
    with torch.inference_mode():
        batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        network = theirs.eval() if head else theirs.body.eval()
        expected = network(batch)
    expected = expected.permute(0, 2, 3, 1) if head is None else expected[0]
    error = relative_error(ours, expected)
    print(f"{variant} {head} at {size}: {error:.2e}")
    assert error <= 1e-5
