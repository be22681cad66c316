"""Losses of multi-label annotation: pure functions of logits and targets, without reduction.

Logits, targets and losses are `[B, C]` for B images and C labels. Logits have any float type, targets are 0 or 1, and
losses are float32. Losses and gradients are finite for every finite logit. `sigmoid(x)` and `1 - sigmoid(x)` keep their
precision, because they are computed from log-probabilities.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from aia_jax.utils.errors import InputError

PRESETS = {
    "bce": {},
    "focal": {"gamma_neg": 3, "gamma_pos": 3, "pos_margin": 0, "neg_margin": 0, "threshold": 0},
    "asymmetric": {"gamma_neg": 4, "gamma_pos": 0, "pos_margin": 0, "neg_margin": 0.05, "threshold": 0},
    "proposed": {"gamma_neg": 4, "gamma_pos": 3, "pos_margin": 1.1, "neg_margin": 0.05, "threshold": 0.25},
}
_EPS = 1e-8  # smallest argument of a logarithm


def bce(logits: Array, targets: Array) -> Array:
    """Computes the binary cross-entropy.

    The loss is `-y log(p) - (1 - y) log(1 - p)` with `p = sigmoid(logits)` and `y = targets`. The mean of all B x C
    losses equals PyTorch's `MultiLabelSoftMarginLoss`.
    """
    x, y = logits.astype(jnp.float32), targets.astype(jnp.float32)
    return -y * jax.nn.log_sigmoid(x) - (1 - y) * jax.nn.log_sigmoid(-x)


def multi_label_loss(
    logits: Array,
    targets: Array,
    *,
    gamma_neg: float,
    gamma_pos: float,
    pos_margin: float,
    neg_margin: float,
    threshold: float,
) -> Array:
    """Computes the asymmetric loss with margins for positives and negatives.

        negative:  -pm^gamma_neg log(max(1 - pm, eps)),   pm = max(p - neg_margin, 0),  p = sigmoid(x)
        positive:  -log(max(q, eps))                      if pos_margin > 0 and q >= threshold,
                   -(1 - q)^gamma_pos log(max(q, eps))    otherwise,                    q = sigmoid(x - pos_margin)

    `x` is the logit, and `eps` is 1e-8. Gradients also flow through the factors before `log`. Focal loss (Lin et al.,
    2017) and asymmetric loss (Ridnik et al., 2021) are special cases, see `PRESETS`.

    Reference: Salar and Ahmadi, "Improving loss function for deep convolutional neural network applied in automatic
    image annotation", The Visual Computer 2023.

    Args:
        gamma_neg, gamma_pos: exponents in the losses of negatives and positives, at least 0.
        pos_margin: margin subtracted from the logits of positives, at least 0.
        neg_margin: margin subtracted from the probabilities of negatives, in [0, 1).
        threshold: if `pos_margin` is above 0, positives with `q >= threshold` have no factor `(1 - q)^gamma_pos`.
    """
    x, y = logits.astype(jnp.float32), targets.astype(jnp.float32)
    p = _sigmoid(x)
    pm = _at_least(p - neg_margin, 0.0)
    rest = jnp.where(p >= neg_margin, _sigmoid(-x) + neg_margin, 1.0)  # 1 - pm without cancellation errors
    negative = -_power(pm, gamma_neg) * jnp.log(_at_least(rest, _EPS))
    shifted = x - pos_margin
    modulation = _power(_sigmoid(-shifted), gamma_pos)
    if pos_margin > 0:
        modulation = jnp.where(_sigmoid(shifted) >= threshold, 1.0, modulation)
    positive = -modulation * _at_least(jax.nn.log_sigmoid(shifted), math.log(_EPS))
    return y * positive + (1 - y) * negative


def annotation_loss(name: str, **overrides: float) -> Callable[[Array, Array], Array]:
    """Returns the loss function with a name in `PRESETS`. The arguments of the function are logits and targets.

    `overrides` replace parameters of the loss, for example `gamma_neg=2` for VG-500.
    Raises InputError if the name is unknown, or if the loss does not have a parameter in `overrides`.
    """
    if name not in PRESETS:
        raise InputError(f"config.loss.name: unknown loss {name!r}; known: {', '.join(PRESETS)}")
    unknown = sorted(overrides.keys() - PRESETS[name].keys())
    if unknown:
        known = ", ".join(PRESETS[name]) or "none"
        raise InputError(f"config.loss: {name!r} has no parameter {', '.join(unknown)}; it has: {known}")
    return bce if name == "bce" else partial(multi_label_loss, **PRESETS[name] | overrides)


def masked_mean(losses: Array, mask: Array) -> Array:
    """Computes the mean of the losses `[B, C]` where `mask` `[B, C]` is True, or 0 if it is True nowhere.

    The gradient with respect to the other losses is exactly 0.
    """
    return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1)


def _sigmoid(x: Array) -> Array:
    """Computes the sigmoid. If the sigmoid is near 1, the gradient still has its full relative precision."""
    return jnp.exp(jax.nn.log_sigmoid(x))


def _at_least(x: Array, low: float) -> Array:
    """Computes max(x, low). As in PyTorch, the gradient is 1 if x equals low. NaN stays NaN."""
    return jnp.where(x < low, low, x)


def _power(base: Array, exponent: float) -> Array:
    """Computes base ** exponent for base >= 0. At base 0, the gradient is 0 instead of NaN."""
    positive = ~(base <= 0)  # NaN stays NaN
    return jnp.where(positive, jnp.where(positive, base, 1.0) ** exponent, 0.0**exponent)
