"""Annotation losses compared with hand computations and with PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aia_jax.losses.annotation import PRESETS, annotation_loss, masked_mean, multi_label_loss
from aia_jax.utils.errors import InputError
from tests.helpers.references import reference, relative_error, same_elements

# At logit 0, p = 1/2; with the margin of 1.1, q = sigmoid(-1.1) = 0.24974 < 0.25.
AT_ZERO = {
    "bce": (math.log(2), math.log(2)),
    "focal": (math.log(2) / 8, math.log(2) / 8),
    "asymmetric": (math.log(2), -(0.45**4) * math.log(0.55)),
    "proposed": (0.58589124, -(0.45**4) * math.log(0.55)),
}
LOGITS = np.concatenate([np.linspace(-60, 60, 241), np.random.default_rng(0).normal(0, 4, 200)]).astype(np.float32)


def _at(loss, logit: float, target: int) -> float:
    return float(loss(jnp.asarray([[logit]]), jnp.asarray([[target]]))[0, 0])


def _torch_loss(name: str, logits: np.ndarray, targets: np.ndarray, *, mean: bool = False) -> dict[str, np.ndarray]:
    """The loss and the gradient of its sum or mean."""
    from tests.helpers.torch_oracles import torch, torch_loss

    x = torch.from_numpy(logits).requires_grad_()
    loss = torch_loss(name, x, torch.from_numpy(targets).to(x.dtype))
    loss = loss.mean() if mean else loss
    loss.sum().backward()
    return {"loss": loss.detach(), "gradient": x.grad}


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bool_, jnp.float32])
@pytest.mark.parametrize("name", PRESETS)
def test_values_at_logit_zero_for_targets_of_any_type(name, dtype):
    loss = annotation_loss(name)(jnp.zeros((1, 2)), jnp.asarray([[1, 0]], dtype))
    np.testing.assert_allclose(loss, [AT_ZERO[name]], rtol=1e-6)


def test_a_positive_above_the_threshold_is_not_modulated():
    loss = annotation_loss("proposed")
    np.testing.assert_allclose(_at(loss, 1.1, 1), math.log(2), rtol=1e-6)
    below, above = _at(loss, 0.0013, 1), _at(loss, 0.0015, 1)  # q reaches 0.25 at 1.1 - log 3 = 0.00139
    np.testing.assert_allclose([below, above], [0.75**3 * math.log(4), math.log(4)], rtol=1e-3)


def test_a_negative_within_the_margin_has_zero_loss_and_logarithms_are_clamped():
    assert _at(annotation_loss("asymmetric"), -2.95, 0) == 0  # p = 0.0497
    assert _at(annotation_loss("asymmetric"), -2.9, 0) > 0
    np.testing.assert_allclose(_at(annotation_loss("focal"), -100.0, 1), -math.log(1e-8), rtol=1e-6)
    np.testing.assert_allclose(_at(annotation_loss("focal"), 100.0, 0), -math.log(1e-8), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("fractional", [False, True])
def test_values_and_gradients_are_finite_for_any_finite_logit(name, fractional, dtype):
    overrides = {"gamma_neg": 0.5, "gamma_pos": 0.0} if fractional and name != "bce" else {}
    extremes = [0.0, 1e-30, 20, 60, 1e4, float(jnp.finfo(dtype).max)]
    logits = jnp.asarray([[sign * value for value in extremes for sign in (1, -1)]], dtype)
    for target in (0, 1):
        targets = jnp.full(logits.shape, target)
        value, pullback = jax.vjp(lambda x, y=targets: annotation_loss(name, **overrides)(x, y), logits)
        (gradient,) = pullback(jnp.ones_like(value))
        assert (value.dtype, gradient.dtype) == (jnp.float32, dtype)
        assert (value >= 0).all()
        assert jnp.isfinite(jnp.stack([value, gradient])).all()


def test_overrides_replace_parameters_of_the_preset():
    loss = annotation_loss("proposed", gamma_neg=2)
    np.testing.assert_allclose(_at(loss, 0, 0), -(0.45**2) * math.log(0.55), rtol=1e-6)
    assert PRESETS["proposed"]["gamma_neg"] == 4
    with pytest.raises(InputError, match="'hinge'; known: bce, focal, asymmetric, proposed"):
        annotation_loss("hinge")
    with pytest.raises(InputError, match="'focal' has no parameter gamma; it has: gamma_neg"):
        annotation_loss("focal", gamma=2)
    with pytest.raises(InputError, match="'bce' has no parameter gamma_neg; it has: none"):
        annotation_loss("bce", gamma_neg=2)


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("name", PRESETS)
def test_values_and_gradients_equal_those_of_pytorch(name, target):
    """PyTorch computes in float64, because 1 - sigmoid(x) loses digits in float32. The next test uses float32."""
    logits, targets = LOGITS[None], np.full_like(LOGITS[None], target)
    theirs = reference(f"losses/{name}-{target}", lambda: _torch_loss(name, logits.astype(np.float64), targets))
    ours, pullback = jax.vjp(lambda x: annotation_loss(name)(x, targets), jnp.asarray(logits))
    (gradient,) = pullback(jnp.ones_like(ours))
    np.testing.assert_allclose(*same_elements(ours, theirs["loss"]), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(*same_elements(gradient, theirs["gradient"]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "bce"])
def test_mean_and_gradient_equal_those_of_pytorch_in_float32(name):
    rng = np.random.default_rng(1)
    logits = rng.normal(-2, 2, (16, 30)).astype(np.float32)
    targets = (rng.random((16, 30)) < 0.1).astype(np.float32)
    theirs = reference(f"losses/{name}-mean", lambda: _torch_loss(name, logits, targets, mean=True))
    ours, gradient = jax.value_and_grad(lambda x: annotation_loss(name)(x, targets).mean())(jnp.asarray(logits))
    assert relative_error(ours, theirs["loss"]) <= 1e-6
    assert relative_error(gradient, theirs["gradient"]) <= 1e-6


def test_the_subgradient_at_a_clamp_is_that_of_pytorch():
    """At p = neg_margin PyTorch lets the gradient through; at x = 0 both sides are exact in floating point."""
    options = {"gamma_neg": 0, "gamma_pos": 0, "pos_margin": 0, "neg_margin": 0.5, "threshold": 0}
    gradient = jax.grad(lambda x: multi_label_loss(x, jnp.zeros((1, 1)), **options).sum())(jnp.zeros((1, 1)))
    np.testing.assert_allclose(gradient, [[0.25]], rtol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_nan_logits_give_nan(name, target):
    assert np.isnan(annotation_loss(name)(jnp.full((1, 1), jnp.nan), jnp.full((1, 1), target))).all()


def test_the_masked_mean_is_that_of_the_known_entries_alone():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(4, 5)).astype(np.float32), (rng.random((4, 5)) < 0.5).astype(np.float32)
    mask = rng.random((4, 5)) < 0.5

    def mean(logits, targets):
        return masked_mean(annotation_loss("proposed")(logits, targets), mask)

    loss, gradient = jax.value_and_grad(mean)(jnp.asarray(logits), targets)
    alone = annotation_loss("proposed")(jnp.asarray(logits[mask]), targets[mask])
    np.testing.assert_allclose(loss, np.asarray(alone, np.float64).mean(), rtol=1e-6)
    assert (np.asarray(gradient)[~mask] == 0).all()
    assert (np.asarray(gradient)[mask] != 0).any()
    other = jax.value_and_grad(mean)(jnp.where(mask, logits, -logits), np.where(mask, targets, 1 - targets))
    np.testing.assert_array_equal(other[0], loss)
    np.testing.assert_array_equal(other[1], gradient)
    assert masked_mean(jnp.ones((2, 3)), jnp.zeros((2, 3), bool)) == 0
