"""Full-size models in files of all three generations: the logits equal those of PyTorch."""

import jax
import numpy as np
import pytest

from aia_jax.training.model_arrays import flat_arrays, merge_model, replace_arrays
from tests.helpers.torch_oracles import (
    abstract_model,
    assert_same_arrays,
    build_torch_model,
    relative_error,
    timm_tresnet,
    torch,
)
from tests.helpers.torch_state_files import GENERATIONS, convert, randomized, wrapped

LABELS = 260


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "system", "size"),
    [("m", "annotator", 448), ("v2_l", "annotator", 576), ("m", "classifier", 448), ("v2_l", "backbone", 448)],
    ids=["annotator-m", "annotator-v2_l", "classifier-m", "backbone-21k"],
)
def test_logits_equal_those_of_torch(tmp_path, variant, system, size):
    torch.manual_seed(0)
    tresnet = getattr(timm_tresnet, f"tresnet_{variant}")(num_classes=0)
    theirs = build_torch_model(system, tresnet, 11221 if system == "backbone" else LABELS)
    scales = randomized(theirs)
    assert min(scale.min() for scale in scales.values()) < -0.9
    graphdef, weights = abstract_model(system, variant, LABELS)
    shapes = {path: leaf.shape for path, leaf in flat_arrays(weights).items()}
    zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    if system == "backbone":
        shapes = {path: shape for path, shape in shapes.items() if path.startswith("backbone.")}
    converted = []
    for generation in GENERATIONS:
        torch.save(wrapped(theirs, generation, scales), tmp_path / "a.pth")
        converted.append(convert(tmp_path / "a.pth", shapes)[1])
    for arrays in converted[1:]:
        assert_same_arrays(arrays, converted[0])

    @jax.jit
    def forward(weights, images):
        model = merge_model(graphdef, weights)
        return (model.backbone if system == "backbone" else model)(images, train=False)[0]

    images = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    ours = forward(replace_arrays(weights, zeros | converted[0]), images)
    with torch.inference_mode():
        batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        theirs.eval()
        expected = theirs.body(batch).permute(0, 2, 3, 1) if system == "backbone" else theirs(batch)[0]
    error = relative_error(ours, expected)
    print(f"{variant} {system} at {size}: {error:.2e}")
    assert error <= 1e-5
