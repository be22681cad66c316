"""Compares twenty training steps with PyTorch: timm's backbone, a PyTorch head, Adam, OneCycleLR and an EMA copy.

In float64, both agree to the last digits. In float32, a value before a ReLU rounds to different sides of zero at some
step. Its gradient jumps, and Adam amplifies the difference. Two runs of PyTorch differ in the same way if the last
digits of their initial weights differ. So the test in float32 compares only the first steps.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aia_jax.losses.annotation import annotation_loss
from aia_jax.training.model_arrays import flat_arrays, split_model
from aia_jax.training.optimizer import make_optimizer
from aia_jax.training.sharding import data_mesh
from aia_jax.training.state import TrainState
from aia_jax.training.step import make_train_step
from tests.helpers.references import model_of, our_arrays, random_state, reference, relative_error, same_elements
from tests.helpers.small_annotator import builder
from tests.helpers.toy_task import toy_config

STEPS, BATCH, LABELS, DECAY, PEAK = 20, 8, 6, 0.9, 1e-3


def torch_run(build, state, images, targets):
    """The final arrays "raw" and "ema" under our paths; with "raw", the rows of losses, learning rates and beta1."""
    from tests.helpers.torch_oracles import arrays_of, small_annotator, torch, torch_loss

    model = small_annotator(state, LABELS)
    adam = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=PEAK)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=PEAK, total_steps=STEPS + 1, pct_start=0.3)
    average = copy.deepcopy(model)
    rows = []
    for image, target in zip(images, targets, strict=True):
        logits, _ = model(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
        loss = torch_loss("proposed", logits, torch.from_numpy(target)).mean()
        adam.zero_grad()
        loss.backward()
        rows.append((loss.item(), adam.param_groups[0]["lr"], adam.param_groups[0]["betas"][0]))
        adam.step()
        schedule.step()
        with torch.no_grad():
            for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                mean.copy_(DECAY * mean + (1 - DECAY) * value)
    raw, ema = (our_arrays(build, arrays_of(found), "tresnet") for found in (model, average))
    return {"raw": {"rows": rows} | _determined(raw), "ema": _determined(ema)}


def _determined(arrays):
    """Without the keys' biases: softmax cancels them, so their gradients are rounding noise."""
    return {path: value for path, value in arrays.items() if not path.endswith("key.bias")}


def our_run(model, images, targets):
    optimizer = make_optimizer(toy_config(**{"optimizer.max_learning_rate": PEAK}).optimizer, STEPS + 1)
    mesh = data_mesh(jax.devices()[:1])
    graphdef, weights = split_model(model)
    state = TrainState.create(weights, optimizer)

    def loss_fn(model, batch, _key):
        return annotation_loss("proposed")(model(batch["image"], train=True)[0], batch["target"]).mean(), {}

    step = make_train_step(graphdef, loss_fn, optimizer, ema_decay=DECAY, seed=0, mesh=mesh)
    rows = []
    for image, target in zip(images, targets, strict=True):
        state, metrics = step(state, {"image": image, "target": target}, {})
        rows.append([float(metrics[name]) for name in ("loss", "learning_rate", "beta1")])
    weights = {name: state.weights(name) for name in ("raw", "ema")}
    return np.array(rows), jax.device_get(weights | {"constants": state.constants})


def both_runs(steps, dtype):
    """Returns our rows and final weights, those of PyTorch, and the state dict before the first step."""
    build = builder(LABELS, dtype)
    state = random_state(build, "tresnet", seed=1)
    state = {name: value.astype(dtype) if value.dtype == np.float32 else value for name, value in state.items()}
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS, BATCH, 64, 64, 3)).astype(dtype)[:steps]
    targets = (rng.random((STEPS, BATCH, LABELS)) < 0.3).astype(dtype)[:steps]
    with jax.default_matmul_precision("highest"):
        rows, weights = our_run(model_of(build, state, "tresnet"), images, targets)
    run = functools.cache(lambda: torch_run(build, state, images, targets))
    file = f"trajectory_{dtype}"
    theirs = {name: reference(f"{file}_{name}/arrays", lambda name=name: run()[name]) for name in ("raw", "ema")}
    return rows, weights, theirs, state


@pytest.fixture(scope="module")
def runs():
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jnp, "float32", jnp.float64)  # modules compute in at least this dtype
        return both_runs(STEPS, "float64")


def test_losses_learning_rates_and_beta1_follow_torch(runs):
    rows, _, theirs, _ = runs
    np.testing.assert_allclose(*same_elements(rows, theirs["raw"]["rows"]), rtol=1e-12)
    assert len({round(loss, 6) for loss in rows[:, 0]}) == STEPS


def check_weights(ours, theirs, **tolerances):
    for kind, tolerance in tolerances.items():
        for path, value in _determined(flat_arrays({kind: ours[kind]})).items():
            assert relative_error(value, theirs[path]) <= tolerance, path


@pytest.mark.parametrize("name", ["raw", "ema"])
def test_final_weights_and_statistics_follow_torch(runs, name):
    _, weights, theirs, state = runs
    check_weights(weights[name], theirs[name], stats=1e-11, params=1e-11)
    np.testing.assert_array_equal(weights["constants"]["head"]["query_embedding"], state["head.query_emb.weight"])


def test_the_first_steps_in_float32_follow_torch():
    rows, weights, theirs, _ = both_runs(3, "float32")
    np.testing.assert_allclose(*same_elements(rows, theirs["raw"]["rows"]), rtol=1e-4)
    check_weights(weights["raw"], theirs["raw"], stats=1e-4, params=1e-3)
    check_weights(weights["ema"], theirs["ema"], stats=1e-4, params=1e-3)
