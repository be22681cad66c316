"""A small annotator in training mode against timm's body and the torch head: logits, loss and all gradients."""

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util

from aia_jax.losses.annotation import annotation_loss
from tests.helpers.torch_oracles import build_annotator_pair, relative_error, torch, torch_values

NUM_LABELS = 5


@pytest.mark.parametrize("options", [{}, {"input_statistics": True, "remat": True}])
def test_training_gradients_equal_torchs(options):
    theirs, ours = build_annotator_pair(NUM_LABELS, seed=0, **options)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 96, 96, 3)).astype(np.float32)
    targets = rng.integers(0, 2, (4, NUM_LABELS)).astype(np.float32)
    graphdef, *state = nnx.split(ours, nnx.Param, ...)
    params, rest = map(nnx.to_pure_dict, state)

    def loss(params):
        logits, _ = nnx.merge(graphdef, params, rest)(images, train=True)
        return annotation_loss("bce")(logits, targets).mean(), logits

    with jax.default_matmul_precision("highest"):
        (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected_logits, _ = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    expected = torch.nn.functional.multilabel_soft_margin_loss(expected_logits, torch.from_numpy(targets))
    expected.backward()

    assert relative_error(logits, expected_logits) <= 1e-5
    assert relative_error(value, expected) <= 1e-6
    ours_by_path = traverse_util.flatten_dict(grads)
    theirs_by_path = torch_values(theirs, ours_by_path, gradients=True)
    largest = max(np.abs(value).max() for value in theirs_by_path.values())
    for path, value in theirs_by_path.items():
        atol = 1e-4 * np.abs(value).max() + 1e-6 * largest
        np.testing.assert_allclose(ours_by_path[path], value, rtol=0, atol=atol, err_msg=str(path))
