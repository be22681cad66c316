"""What the stages of a model gave in two frameworks, compared and tabulated."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Stage(NamedTuple):
    """What a stage gave, `[B, ...]` with channels last, and the seconds it took (None: it is part of another's)."""

    value: np.ndarray
    seconds: float | None


Stages = dict[str, Stage]


def timed(call: Callable[..., Any], *inputs: Any) -> tuple[Any, float]:
    """What `call` gives, and the seconds of its second time."""
    jax.block_until_ready(call(*inputs))
    start = time.perf_counter()
    return jax.block_until_ready(call(*inputs)), time.perf_counter() - start


def passes(here: Stages, there: Stages, what: str, tolerance: float) -> bool:
    """Prints how far the stages are apart, relative to each one's largest absolute value.

    Args:
        here, there: of this project and of PyTorch.
        what: went through them, such as "4 images".
        tolerance: largest relative error.

    Returns:
        Whether every stage is within `tolerance`.
    """
    print(_table(here, there, what), flush=True)
    worst = float(np.max([_errors(here[name], there[name])[1] for name in here]))  # NaN if one is
    passed = worst <= tolerance
    verdict = "passed" if passed else "FAILED"
    print(f"largest relative error {worst:.1e}, tolerance {tolerance:.1e}: {verdict}", flush=True)
    return passed


def _errors(here: Stage, there: Stage) -> tuple[float, float]:
    """Largest absolute deviation, and over the largest magnitude."""
    if here.value.shape != there.value.shape:
        return float("inf"), float("inf")
    deviation = float(np.abs(here.value - there.value).max())
    return deviation, deviation / max(float(np.abs(there.value).max()), np.finfo(np.float32).tiny)


def _table(here: Stages, there: Stages, what: str) -> str:
    first = max(12, *(len(name) + 2 for name in (*here, what)))
    lines = [f"{'stage':<{first}}{'shape':>22}{'max abs':>12}{'max rel':>12}{'PyTorch ms':>12}{'JAX ms':>10}"]
    for name, stage in here.items():
        absolute, relative = _errors(stage, there[name])
        times = ["" if side.seconds is None else f"{1e3 * side.seconds:.1f}" for side in (there[name], stage)]
        shape = " x ".join(map(str, stage.value.shape))
        lines.append(f"{name:<{first}}{shape:>22}{absolute:>12.2e}{relative:>12.2e}{times[0]:>12}{times[1]:>10}")
    sums = [1e3 * sum(stage.seconds or 0 for stage in side.values()) for side in (there, here)]
    lines.append(f"{what:<{first}}{'':>46}{sums[0]:>12.1f}{sums[1]:>10.1f}")
    return "\n".join(lines)
