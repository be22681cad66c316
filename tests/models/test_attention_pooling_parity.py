"""The attention-pooling head against one built on `torch.nn.MultiheadAttention`, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.attention_pooling import AttentionPooling
from tests.helpers.torch_oracles import (
    TorchAttentionPooling,
    copy_weights,
    randomize,
    relative_error,
    torch,
    torch_values,
)

NUM_LABELS, NUM_FEATURES = 7, 48
SIZES = {"hidden_size": 32, "num_heads": 4, "feedforward_size": 64}
OPTIONS = [
    {},
    {"self_attention": True},
    {"norm_first": False},
    {"num_layers": 2},
    {"activation": "gelu"},
    {"keep_query_position": False},
    {"self_attention": True, "norm_first": False, "num_layers": 2, "activation": "gelu", "keep_query_position": False},
]
TOLERANCE = 1e-5


@pytest.fixture(params=OPTIONS, ids=lambda options: "-".join(options) or "default")
def pair(request):
    """The torch head and ours with the same random weights."""
    options = {**SIZES, **request.param, "dropout": 0.0}
    torch.manual_seed(0)
    theirs = TorchAttentionPooling(NUM_LABELS, NUM_FEATURES, **options)
    randomize(theirs, seed=0)
    ours = AttentionPooling(NUM_LABELS, NUM_FEATURES, **options, rngs=nnx.Rngs(0))
    copy_weights(theirs, ours, "head")
    return theirs, ours


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 4, 5, NUM_FEATURES)).astype(np.float32)


def _nchw(features: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(features.transpose(0, 3, 1, 2))


def test_logits_and_attention_maps_equal_torchs(pair, features):
    theirs, ours = pair
    logits, out = ours(features, train=False)
    with torch.no_grad():
        expected_logits, expected = theirs.eval()(_nchw(features))
    assert relative_error(logits, expected_logits) <= TOLERANCE
    assert relative_error(out["attention"], expected["attention"].reshape(3, NUM_LABELS, 4, 5)) <= TOLERANCE


def test_gradients_equal_torchs(pair, features):
    theirs, ours = pair
    direction = np.random.default_rng(1).normal(size=(3, NUM_LABELS)).astype(np.float32)
    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)

    def loss(params, features):
        logits, _ = nnx.merge(graphdef, params, rest)(features, train=True)
        return (logits * direction).sum()

    grads, features_grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, jnp.asarray(features))
    inputs = _nchw(features).requires_grad_()
    (theirs.train()(inputs)[0] * torch.from_numpy(direction)).sum().backward()
    assert relative_error(features_grad, inputs.grad.permute(0, 2, 3, 1)) <= TOLERANCE
    ours_by_path = dict(nnx.to_flat_state(grads))
    expected = torch_values(theirs, ours_by_path, "head", gradients=True)
    scale = max(np.abs(value).max() for value in expected.values())
    for path, value in expected.items():
        # The exact gradient of the key's bias is 0, so the tolerance is relative to the largest gradient of all.
        np.testing.assert_allclose(ours_by_path[path][...], value, atol=TOLERANCE * scale, err_msg=str(path))
