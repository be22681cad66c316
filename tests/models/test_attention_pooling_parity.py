"""The attention-pooling head against one built on `torch.nn.MultiheadAttention`, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.attention_pooling import AttentionPooling
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

NUM_LABELS, NUM_FEATURES = 7, 48
SIZES = {"hidden_size": 32, "num_heads": 4, "feedforward_size": 64, "dropout": 0.0}
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


class Head(nnx.Module):
    """An attention head under the name that the tables of array names expect."""

    def __init__(self, **options):
        self.head = AttentionPooling(NUM_LABELS, NUM_FEATURES, **SIZES, **options, rngs=nnx.Rngs(0))


def _name(options: dict) -> str:
    return "-".join(options) or "default"


def _torch(state: dict[str, np.ndarray], options: dict):
    from tests.helpers.torch_oracles import TorchAttentionPooling, load

    head = TorchAttentionPooling(NUM_LABELS, NUM_FEATURES, **SIZES, **options)
    return load(head, {name.removeprefix("head."): value for name, value in state.items()})


@pytest.fixture(params=OPTIONS, ids=_name)
def case(request):
    """The options, a random state dict and our head with its arrays."""
    build = lambda: Head(**request.param)  # noqa: E731
    state = random_state(build, "tresnet", seed=0)
    return request.param, state, build, model_of(build, state, "tresnet")


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 4, 5, NUM_FEATURES)).astype(np.float32)


def test_logits_and_attention_maps_equal_torchs(case, features):
    options, state, _, model = case
    logits, out = model.head(features, train=False)

    def compute():
        from tests.helpers.torch_oracles import torch

        with torch.no_grad():
            logits, out = _torch(state, options).eval()(torch.from_numpy(features.transpose(0, 3, 1, 2)))
        return {"logits": logits, "attention": out["attention"].reshape(3, NUM_LABELS, 4, 5)}

    theirs = reference(f"attention_pooling/{_name(options)}", compute)
    assert relative_error(logits, theirs["logits"]) <= TOLERANCE
    assert relative_error(out["attention"], theirs["attention"]) <= TOLERANCE


def test_gradients_equal_torchs(case, features):
    options, state, build, model = case
    direction = np.random.default_rng(1).normal(size=(3, NUM_LABELS)).astype(np.float32)
    graphdef, weights = split_model(model)

    def loss(params, features):
        logits, _ = merge_model(graphdef, {**weights, "params": params}).head(features, train=True)
        return (logits * direction).sum()

    grads, features_grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(weights["params"], jnp.asarray(features))
    ours = flat_arrays({"params": grads})

    def compute():
        from tests.helpers.torch_oracles import gradients_of, torch

        theirs, inputs = _torch(state, options).train(), torch.from_numpy(features.transpose(0, 3, 1, 2).copy())
        (theirs(inputs.requires_grad_())[0] * torch.from_numpy(direction)).sum().backward()
        found = our_arrays(build, state | gradients_of(theirs, "head."), "tresnet")
        return {"features": inputs.grad.permute(0, 2, 3, 1)} | {path: found[path] for path in ours}

    theirs = reference(f"attention_pooling_gradients/{_name(options)}", compute)
    assert relative_error(features_grad, theirs["features"]) <= TOLERANCE
    scale = max(largest(theirs[path]) for path in ours)
    for path, gradient in ours.items():
        # The exact gradient of the key's bias is 0, so the tolerance is relative to the largest gradient of all.
        assert largest_error(gradient, theirs[path]) <= TOLERANCE * scale, path
