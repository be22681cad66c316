"""Numbers that no config may hold, told before anything is computed."""

import math
from typing import Any

from ml_collections import ConfigDict

from aia_jax.utils.errors import InputError

_LARGEST = 2**31 - 1
_FROM_ZERO = ("max_skipped_steps", "negatives", "num_workers", "seed", "split_seed")  # other whole numbers: from 1
_FRACTIONS = (
    *("beta1", "beta1_base", "beta1_max", "beta2", "dropout", "ema_decay", "eval.threshold", "held_out", "pct_start"),
    *("keyword_threshold", "keywords_added", "keywords_left_out", "validation_fraction"),
)
_ABOVE_ZERO = ("decay_factor", "eps", "final_div", "initial_div", "margin")


def check_numbers(config: ConfigDict) -> None:
    """Raises InputError, naming all of them, if numbers of a config make no sense whatever the others are."""
    problems = [
        f"config.{field}={value!r:.80} {problem}"
        for field, value in _fields(config.to_dict(), "")
        if (problem := _problem(field, value))
    ]
    if problems:
        raise InputError("\n".join(problems))


def _fields(tree: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for name, value in tree.items():
        found += _fields(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found


def _problem(field: str, value: Any) -> str:
    if isinstance(value, tuple | list):  # data.lengths alone
        rising = all(type(number) is int for number in value) and [0, *value] == sorted({0, *value})
        return "" if rising and value else "must be whole numbers above 0 that rise"
    if isinstance(value, int) and not isinstance(value, bool):
        least = 0 if _is_one_of(field, _FROM_ZERO) else 1
        return "" if least <= value <= _LARGEST else f"must lie in {least}..{_LARGEST}"
    if not isinstance(value, float):
        return ""
    if not math.isfinite(value):
        return "must be a finite number"
    if _is_one_of(field, _FRACTIONS):
        return "" if 0 <= value <= 1 else "must lie in 0..1"
    if _is_one_of(field, _ABOVE_ZERO):
        return "" if value > 0 else "must be above 0"
    return "" if value >= 0 or field.startswith("loss.") else "must be at least 0"


def _is_one_of(field: str, names: tuple[str, ...]) -> bool:
    return f".{field}".endswith(tuple(f".{name}" for name in names))
