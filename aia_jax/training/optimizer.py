"""Optimizers (Adam, AdamW, LAMB) and schedules (one-cycle, step decay). Adam and one-cycle are as in PyTorch."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from aia_jax.utils.errors import InputError

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def one_cycle(total_steps: int, pct_start: float, start: float, peak: float, end: float) -> Schedule:
    """Returns a schedule of two cosine phases: from `start` to `peak`, then from `peak` to `end`.

    The first phase ends at step `pct_start * total_steps - 1` (not rounded), and the second at `total_steps - 1`, as in
    `torch.optim.lr_scheduler.OneCycleLR`. The schedule is a function from the 0-based step to a value.

    Raises InputError if the first phase has at most one step, or does not end before the last step.
    """
    first_end, last_end = pct_start * total_steps - 1, total_steps - 1
    if not 0 < first_end < last_end:
        raise InputError(
            f"one-cycle schedule over {total_steps} steps with pct_start {pct_start}: the rising phase needs more than "
            "one step and must end before the last; train for more epochs, or with a smaller batch_size"
        )

    def cosine(from_value, to_value, fraction):
        return to_value + (from_value - to_value) / 2 * (1 + jnp.cos(jnp.pi * fraction))

    def value(step: jax.typing.ArrayLike) -> jax.Array:
        rising = cosine(start, peak, step / first_end)
        falling = cosine(peak, end, jnp.minimum((step - first_end) / (last_end - first_end), 1.0))
        return jnp.where(step <= first_end, rising, falling)

    return value


def step_decay(
    total_steps: int, start: float, factor: float, decay_epochs: int, epoch_end: Callable[[int], int]
) -> Schedule:
    """Returns a schedule that begins at `start` and multiplies the value by `factor` every `decay_epochs` epochs.

    `epoch_end` maps an epoch (1-based) to the number of steps at its end.
    """
    ends = itertools.takewhile(
        lambda end: end < total_steps, map(epoch_end, itertools.count(decay_epochs, decay_epochs))
    )
    return optax.piecewise_constant_schedule(start, dict.fromkeys(ends, factor))


def check_optimizer(config: ConfigDict) -> None:
    """Raises InputError if `name` or `schedule` in `config.optimizer` is unknown, or Adam has a `weight_decay`."""
    for field, known in (("name", ("adam", "adamw", "lamb")), ("schedule", ("one_cycle", "step"))):
        if config[field] not in known:
            raise InputError(f"config.optimizer.{field}={config[field]!r} is unknown; known: {', '.join(known)}")
    if config.name == "adam" and config.weight_decay:
        raise InputError(
            f"config.optimizer.weight_decay={config.weight_decay}: adam has none; set it to 0, or use adamw or lamb"
        )


def make_optimizer(
    config: ConfigDict, total_steps: int, epoch_end: Callable[[int], int] | None = None
) -> optax.GradientTransformation:
    """Returns Adam, AdamW or LAMB with a schedule of the learning rate. The schedule "one_cycle" also changes beta1.

    Args:
        config: `config.optimizer`, with the fields `name` ("adam", "adamw" or "lamb"), `max_learning_rate`, `beta2`,
            `eps`, `weight_decay` (not for Adam), `clip_norm` (0: no clipping) and `schedule`. "one_cycle" moves the
            learning rate and beta1 in opposite directions (Salar & Ahmadi 2024, section 4; PyTorch's `OneCycleLR`). It
            uses `pct_start`, `initial_div`, `final_div`, `beta1_base` and `beta1_max`. "step" uses `decay_epochs`,
            `decay_factor` and `beta1`.
        epoch_end: see `step_decay`. Only the schedule "step" needs this function.

    Raises InputError: see `check_optimizer`.
    """
    check_optimizer(config)
    peak = config.max_learning_rate
    if config.schedule == "step":
        learning_rate = step_decay(total_steps, peak, config.decay_factor, config.decay_epochs, epoch_end)
        beta1 = config.beta1
    else:
        start = peak / config.initial_div
        learning_rate = one_cycle(total_steps, config.pct_start, start, peak, start / config.final_div)
        beta1 = one_cycle(total_steps, config.pct_start, config.beta1_max, config.beta1_base, config.beta1_max)
    fields = {"b1": beta1, "b2": config.beta2, "eps": config.eps}
    if config.name != "adam":
        fields["weight_decay"] = config.weight_decay
    optimizers = {"adam": optax.adam, "adamw": _adamw, "lamb": _lamb}
    make = optax.inject_hyperparams(optimizers[config.name], hyperparam_dtype=jnp.float32)
    optimizer = make(learning_rate, **fields)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer) if config.clip_norm > 0 else optimizer


def _adamw(
    learning_rate: jax.Array, b1: jax.Array, b2: jax.Array, eps: jax.Array, weight_decay: jax.Array
) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov & Hutter, ICLR 2019). Vectors and scalars have no weight decay."""
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, _matrices),
        optax.scale_by_learning_rate(learning_rate),
    )


def _lamb(
    learning_rate: jax.Array, b1: jax.Array, b2: jax.Array, eps: jax.Array, weight_decay: jax.Array
) -> optax.GradientTransformation:
    """Returns LAMB, which scales Adam's update to the norm of each weight (You et al., arXiv 1904.00962, algorithm 2).

    Vectors and scalars, such as biases, get Adam's update without scaling and without weight decay.
    """
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, _matrices),
        optax.masked(optax.scale_by_trust_ratio(), _matrices),
        optax.scale_by_learning_rate(learning_rate),
    )


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def hyperparameters(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """Returns the `learning_rate` and `beta1` of the last update from the optimizer's state."""
    found = optax.tree_utils.tree_get(opt_state, "hyperparams")
    return {"learning_rate": found["learning_rate"], "beta1": found["b1"]}
