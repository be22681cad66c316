"""Draws training curves: loss and learning rate by step, and a metric of raw and averaged weights by epoch."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from aia_jax.report.figures import QUIET, Page, measure

_PLOT_WIDTH, _PLOT_HEIGHT, _LEFT, _TOP, _BETWEEN = 3.9, 2.9, 0.75, 0.95, 0.85
_LEFTS = [_LEFT + place * (_PLOT_WIDTH + _BETWEEN) for place in range(3)]
_RIGHT = _LEFTS[2] + _PLOT_WIDTH
_WEIGHTS = {"raw": ("#0068a8", "-", "raw weights"), "ema": ("#c8400a", "--", "averaged weights")}


def draw_curves(
    path: str | os.PathLike,
    records: Sequence[Mapping[str, Any]],
    metric: str,
    *,
    best: tuple[int, str] | None = None,
    title: str = "",
) -> None:
    """Draws the training curves of a run as a PNG at `path`. A plot without points contains a message.

    Args:
        records: lines of `metrics.jsonl` as dicts, sorted by step (see `training.metric_writer.read_metrics`). Dicts of
            kind "train" have `loss` and `learning_rate`. Dicts of a kind that ends in `_raw` or `_ema` have `epoch` and
            the metric `metric`.
        metric: name of the metric that determines the best epoch.
        best: the best epoch, and the weights with the better metric in this epoch: "raw" or "ema" (averaged weights).
    """
    page = Page(_RIGHT + 0.35, _TOP + _PLOT_HEIGHT + 0.7)
    page.write_header(title)
    trained = [record for record in records if record["kind"] == "train"]
    for left, name, color in zip(_LEFTS, ("loss", "learning_rate"), ("#0068a8", "#8c5a00"), strict=False):
        axes = _axes(page, left, name.replace("_", " "), "step")
        _plot(page, axes, left, [(record["step"], record.get(name)) for record in trained], color=color)
    axes = _axes(page, _LEFTS[2], metric, "epoch")
    left, top = _LEFTS[2], _TOP - 0.2
    for weights, (color, style, name) in _WEIGHTS.items():
        evaluated = [record for record in records if str(record["kind"]).endswith(f"_{weights}")]
        points = [(record.get("epoch"), record.get(metric)) for record in evaluated]
        if not evaluated and weights == "ema":
            continue
        shown = _plot(page, axes, _LEFTS[2], points, color=color, linestyle=style, marker="o", markersize=3)
        page.write(name, left, top, color=color)
        left += measure(name) + 0.2
        at = [value for epoch, value in shown if best == (epoch, weights)]
        if at:
            axes.plot(best[0], at[0], "*", color=color, markersize=15, markeredgecolor="white", zorder=5)
            page.write(f"★ best: epoch {best[0]}, {at[0]:.4f}", _RIGHT, top - 0.2, color=color, ha="right")
    page.save(path)


def _axes(page: Page, left: float, name: str, below: str) -> Axes:
    page.write(name, left, _TOP - 0.42, size=10)
    page.write(below, left + _PLOT_WIDTH, _TOP + _PLOT_HEIGHT + 0.36, color=QUIET, ha="right")
    return page.plot(left, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT)


def _plot(page: Page, axes: Axes, left: float, points: Sequence[tuple[Any, Any]], **style) -> list[tuple[float, float]]:
    """Plots the points whose coordinates are finite numbers, and returns them."""
    shown = [(x, y) for x, y in points if _is_number(x) and _is_number(y)]
    if shown:
        axes.plot(*zip(*shown, strict=True), linewidth=1.4, **style)
    else:
        page.write("no records", left + 0.15, _TOP + 0.15, color=QUIET)
    return shown


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))
