import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aia_jax.training.optimizer import hyperparameters, make_optimizer, one_cycle, step_decay
from aia_jax.utils.errors import InputError
from tests.helpers.references import reference, same_elements
from tests.helpers.toy_task import toy_config


def test_one_cycle_reaches_start_peak_and_end():
    value = one_cycle(101, 0.2 + 1e-9, 1.0, 5.0, 0.5)
    np.testing.assert_allclose([value(0), value(100), value(1000)], [1.0, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(max(float(value(step)) for step in range(101)), 5.0, rtol=1e-2)
    with pytest.raises(InputError, match="train for more epochs"):
        one_cycle(4, 0.2, 1.0, 2.0, 0.5)


def test_step_decay_falls_after_every_second_epoch():
    """0.1 ** (epoch // 2) over five epochs of 10 / 3 steps, as in the published code."""
    value = step_decay(16, 2.0, 0.1, 2, lambda epoch: epoch * 10 // 3)
    np.testing.assert_allclose([value(step) for step in range(16)], [2.0] * 6 + [0.2] * 7 + [0.02] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("total", "pct_start", "clip_norm"),
    [(20, 0.2, 0.0), (141, 0.2, 0.0), (37, 0.35, 0.0), (21, 0.3, 0.0), (21, 0.3, 0.5)],
)
def test_adam_with_one_cycle_follows_torch(total, pct_start, clip_norm):
    gradients = np.random.default_rng(0).normal(size=(total, 5)).astype(np.float32)

    def compute():
        import torch

        weights, rows = torch.nn.Parameter(torch.ones(5)), []
        adam = torch.optim.Adam([weights], lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=1e-2, total_steps=total, pct_start=pct_start)
        for gradient in gradients:
            weights.grad = torch.tensor(gradient)
            if clip_norm:
                torch.nn.utils.clip_grad_norm_([weights], clip_norm)
            rows.append((adam.param_groups[0]["lr"], adam.param_groups[0]["betas"][0]))
            adam.step()
            schedule.step()
        rates, betas = zip(*rows, strict=True)
        return {"learning_rate": rates, "beta1": betas, "weights": weights.detach()}

    theirs = reference(f"optimizer/{total}-{pct_start}-{clip_norm}", compute)
    fields = {"optimizer.clip_norm": clip_norm, "optimizer.pct_start": pct_start}
    optimizer = make_optimizer(toy_config(**fields).optimizer, total)
    params, used = {"w": jnp.ones(5)}, {"learning_rate": [], "beta1": []}
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
        for name, values in used.items():
            values.append(hyperparameters(state)[name])
        params = jax.tree.map(jnp.add, params, updates)
    rates, betas = (same_elements(np.array(used[name]), theirs[name]) for name in ("learning_rate", "beta1"))
    np.testing.assert_allclose(*rates, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(*betas, rtol=1e-6)
    np.testing.assert_allclose(*same_elements(params["w"], theirs["weights"]), rtol=1e-5)


def test_lamb_follows_its_paper():
    fields = {"optimizer.name": "lamb", "optimizer.weight_decay": 0.1, "optimizer.eps": 1e-6}
    optimizer, total = make_optimizer(toy_config(**fields).optimizer, 10), 10
    rng = np.random.default_rng(0)
    # The norm of `large` differs from that of `kernel`; `zero` gets Adam's update at first.
    shapes = {"kernel": (4, 3), "large": (2, 2), "zero": (2, 2), "bias": (3,)}
    factors = {"kernel": 1, "large": 5, "zero": 0, "bias": 1}
    params = {name: jnp.float32(factors[name] * rng.normal(size=shape)) for name, shape in shapes.items()}
    state, ours = optimizer.init(params), jax.tree.map(np.array, params)
    mean, square = (jax.tree.map(np.zeros_like, ours) for _ in range(2))
    for step in range(total):
        gradients = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, gradients), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        used = hyperparameters(state)
        rate, beta1 = float(used["learning_rate"]), float(used["beta1"])
        np.testing.assert_allclose(rate, one_cycle(total, 0.3, 4e-4, 1e-2, 4e-8)(step), rtol=1e-5)
        for name, gradient in gradients.items():
            mean[name] = beta1 * mean[name] + (1 - beta1) * gradient
            square[name] = 0.999 * square[name] + 0.001 * gradient**2
            corrected = mean[name] / (1 - beta1 ** (step + 1)), square[name] / (1 - 0.999 ** (step + 1))
            update = corrected[0] / (np.sqrt(corrected[1]) + 1e-6)
            if name != "bias":
                update += 0.1 * ours[name]
                update *= (np.linalg.norm(ours[name]) or np.linalg.norm(update)) / np.linalg.norm(update)
            ours[name] = ours[name] - rate * update
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), params, ours)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.schedule": "cosine"}, r"config.optimizer.schedule='cosine' is unknown; known: one_cycle, step"),
        ({"optimizer.name": "sgd"}, r"config.optimizer.name='sgd' is unknown; known: adam, adamw, lamb"),
        ({"optimizer.weight_decay": 0.1}, r"config.optimizer.weight_decay=0.1: adam has none"),
    ],
)
def test_impossible_optimizers_are_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(toy_config(**overrides).optimizer, 10)


@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_weights_in_bfloat16_leave_the_hyperparameters_exact(name):
    optimizer = make_optimizer(toy_config(**{"optimizer.name": name}).optimizer, 10)
    params = {"kernel": jnp.ones((2, 2), jnp.bfloat16)}
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update({"kernel": jnp.ones((2, 2), jnp.bfloat16)}, state, params)
        assert np.isfinite(np.asarray(updates["kernel"], np.float32)).all()
    assert hyperparameters(state)["beta1"].dtype == jnp.float32
