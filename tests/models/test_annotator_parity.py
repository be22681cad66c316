"""A small annotator in training mode against timm's body and the torch head: logits, loss and all gradients."""

import jax
import numpy as np
import pytest

from aia_jax.losses.annotation import annotation_loss
from aia_jax.training.model_arrays import flat_arrays, merge_model, split_model
from tests.helpers.references import (
    largest,
    largest_error,
    model_of,
    our_arrays,
    random_state,
    reference,
    relative_error,
)
from tests.helpers.small_annotator import builder

NUM_LABELS = 5


@pytest.mark.parametrize("options", [{}, {"input_statistics": True, "remat": True}])
def test_training_gradients_equal_torchs(options):
    build = builder(NUM_LABELS, **options)
    state = random_state(build, "tresnet", seed=0)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 96, 96, 3)).astype(np.float32)
    targets = rng.integers(0, 2, (4, NUM_LABELS)).astype(np.float32)
    graphdef, weights = split_model(model_of(build, state, "tresnet"))

    def loss(params):
        logits, _ = merge_model(graphdef, {**weights, "params": params})(images, train=True)
        return annotation_loss("bce")(logits, targets).mean(), logits

    with jax.default_matmul_precision("highest"):
        (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights["params"])

    ours = flat_arrays({"params": grads})

    def compute():
        from tests.helpers.torch_oracles import gradients_of, small_annotator, torch

        theirs = small_annotator(state, NUM_LABELS)
        expected, _ = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        loss = torch.nn.functional.multilabel_soft_margin_loss(expected, torch.from_numpy(targets))
        loss.backward()
        found = our_arrays(build, state | gradients_of(theirs), "tresnet")
        return {"logits": expected.detach(), "loss": loss.detach()} | {path: found[path] for path in ours}

    theirs = reference("annotator/gradients", compute)
    assert relative_error(logits, theirs["logits"]) <= 1e-5
    assert relative_error(value, theirs["loss"]) <= 1e-6
    scale = max(largest(theirs[path]) for path in ours)
    for path, gradient in ours.items():
        assert largest_error(gradient, theirs[path]) <= 1e-4 * largest(theirs[path]) + 1e-6 * scale, path
