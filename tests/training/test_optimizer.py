import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_task import toy_config

from aia_jax.errors import InputError
from aia_jax.training.optimizer import hyperparameters, make_optimizer, one_cycle


@pytest.mark.parametrize(("total", "pct"), [(20, 0.2), (141, 0.2), (37, 0.35)])
def test_one_cycle_follows_torch(total, pct):
    torch = pytest.importorskip("torch")
    adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=1e-4, total_steps=total, pct_start=pct)
    rates, betas = [], []
    for step in range(total):
        rates.append(adam.param_groups[0]["lr"])
        betas.append(adam.param_groups[0]["betas"][0])
        adam.step()
        if step + 1 < total:
            schedule.step()
    steps = np.arange(total)
    np.testing.assert_allclose(one_cycle(total, pct, 4e-6, 1e-4, 4e-10)(steps), rates, rtol=2e-4, atol=1e-10)
    np.testing.assert_allclose(one_cycle(total, pct, 0.95, 0.85, 0.95)(steps), betas, rtol=1e-6)


def test_one_cycle_at_its_corners():
    value = one_cycle(101, 0.2 + 1e-9, 1.0, 5.0, 0.5)
    np.testing.assert_allclose([value(0), value(100), value(1000)], [1.0, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(max(float(value(step)) for step in range(101)), 5.0, rtol=1e-2)


def test_too_short_a_run_is_refused():
    with pytest.raises(InputError, match="train for more epochs"):
        one_cycle(4, 0.2, 1.0, 2.0, 0.5)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_adam_follows_torch(clip_norm):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(20, 5)).astype(np.float32)
    weights = torch.nn.Parameter(torch.ones(5))
    adam = torch.optim.Adam([weights], lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=1e-2, total_steps=21, pct_start=0.3)
    optimizer = make_optimizer(toy_config(**{"optimizer.clip_norm": clip_norm}).optimizer, 21)
    params = {"w": jnp.ones(5)}
    state = optimizer.init(params)
    for gradient in gradients:
        weights.grad = torch.tensor(gradient)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_([weights], clip_norm)
        updates, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
        used = hyperparameters(state)
        np.testing.assert_allclose(used["learning_rate"], adam.param_groups[0]["lr"], rtol=1e-4)
        np.testing.assert_allclose(used["beta1"], adam.param_groups[0]["betas"][0], rtol=1e-5)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        adam.step()
        schedule.step()
    np.testing.assert_allclose(params["w"], weights.detach().numpy(), rtol=1e-5)
