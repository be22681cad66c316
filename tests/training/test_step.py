import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.training import sharding
from aia_jax.training.model_arrays import split_model
from aia_jax.training.step import accumulate, make_gradients
from tests.helpers.toy_task import FEATURES, ToyModel

ROWS = 64


def make(accumulate_steps: int, *, fsdp: int = 1, devices: int = 8, train: bool = False, width: int = 4096):
    """Returns the jitted gradient function and its arguments for a fixed batch."""
    mesh = sharding.data_mesh(jax.devices()[:devices], fsdp=fsdp)
    graphdef, weights = split_model(ToyModel(width, 0.0, nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    batch = sharding.put_batch({"rows": rows, "target": (rows.sum(1) > 0).astype(np.float32)}, mesh)

    def loss(model, batch, key):
        logits = model(batch["rows"], train=train, key=key)
        losses = jnp.logaddexp(0, logits) - batch["target"] * logits
        return losses.mean(), {"largest": logits.mean()}

    placed = jax.tree.map(lambda leaf: sharding.put_array(leaf, sharding.state_sharding(leaf.shape, mesh)), weights)
    arguments = placed["params"], placed["stats"], placed["constants"], batch, jax.random.key(0)
    return jax.jit(accumulate(make_gradients(graphdef, loss, mesh), accumulate_steps, mesh)), arguments


def compute(accumulate_steps: int, **kwargs):
    """Returns (loss, stats, metrics, gradients) of the batch."""
    gradients, arguments = make(accumulate_steps, **kwargs)
    return jax.device_get(gradients(*arguments))


@pytest.mark.parametrize(("accumulate_steps", "fsdp", "devices"), [(8, 1, 8), (4, 4, 8), (64, 1, 1), (1, 8, 8)])
def test_microbatches_equal_the_large_batch_if_batch_norm_is_frozen(accumulate_steps, fsdp, devices):
    expected = compute(1, devices=1)
    actual = compute(accumulate_steps, fsdp=fsdp, devices=devices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), actual, expected)


def test_microbatches_do_not_depend_on_the_number_of_devices():
    expected, actual = (compute(4, devices=devices, train=True, width=8) for devices in (1, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)


def test_batch_norm_updates_its_statistics_once_for_each_microbatch():
    _, weights = split_model(ToyModel(8, 0.0, nnx.Rngs(0)))
    rows = np.random.default_rng(1).normal(size=(ROWS, FEATURES)).astype(np.float32)
    hidden = rows @ np.asarray(weights["params"]["first"]["kernel"]) + np.asarray(weights["params"]["first"]["bias"])
    mean = np.asarray(weights["stats"]["norm"]["mean"])
    for part in range(4):
        mean = 0.9 * mean + 0.1 * hidden[part::4].mean(0)
    _, stats, _, _ = compute(4, train=True, width=8)
    np.testing.assert_allclose(stats["norm"]["mean"], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("fsdp", "expected"), [(1, {"all-reduce"}), (8, {"all-reduce", "all-gather"})])
def test_devices_exchange_sums_and_weights_but_no_rows(fsdp, expected):
    gradients, arguments = make(4, fsdp=fsdp, train=True)
    text = gradients.lower(*arguments).compile().as_text()
    assert set(re.findall(r"(all-\w+|reduce-scatter|collective-permute)\(", text)) - {"reduce-scatter"} == expected
