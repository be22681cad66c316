"""Full-size models in files of all three generations: the logits equal those of PyTorch."""

import jax
import numpy as np
import pytest
from flax import nnx

from aia_jax.training.model_arrays import merge_model, replace_arrays, split_model
from aia_jax.weights.torch_archive import write_archive
from tests.helpers.references import reference, relative_error, shapes_of
from tests.helpers.torch_state_files import (
    GENERATIONS,
    assert_same_arrays,
    builder,
    convert,
    plain,
    signed_state,
    wrapped,
)

LABELS = 260


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "system", "size"),
    [("m", "annotator", 448), ("v2_l", "annotator", 576), ("m", "classifier", 448), ("v2_l", "backbone", 448)],
    ids=["annotator-m", "annotator-v2_l", "classifier-m", "backbone-21k"],
)
def test_logits_equal_those_of_torch(tmp_path, variant, system, size):
    build = builder(system, variant, LABELS)
    num_classes = 11221 if system == "backbone" else 0
    state = signed_state(build, num_classes)
    assert state[next(name for name in state if name.endswith("conv1.bn.weight"))].min() < -0.9
    converted = []
    for generation in GENERATIONS:
        write_archive(tmp_path / "a.pth", wrapped(state, generation))
        converted.append(convert(tmp_path / "a.pth", shapes_of(build))[1])
    for arrays in converted[1:]:
        assert_same_arrays(arrays, converted[0])
    graphdef, weights = split_model(nnx.eval_shape(build))

    @jax.jit
    def forward(weights, images):
        model = merge_model(graphdef, weights)
        return (model.backbone if system == "backbone" else model)(images, train=False)[0]

    images = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)

    def compute():
        from tests.helpers.torch_oracles import build_torch_model, build_tresnet, load, torch

        theirs = load(build_torch_model(system, build_tresnet(variant), num_classes or LABELS), plain(state)).eval()
        with torch.inference_mode():
            batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
            found = theirs.body(batch).permute(0, 2, 3, 1) if system == "backbone" else theirs(batch)[0]
        return {"found": found}

    expected = reference(f"full_size/{system}-{variant}", compute)["found"]
    error = relative_error(forward(replace_arrays(weights, converted[0]), images), expected)
    print(f"{variant} {system} at {size}: {error:.2e}")
    assert error <= 1e-5
