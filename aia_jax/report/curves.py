"""How training went: loss and learning rate over its steps, the metric of raw and averaged weights over its epochs."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from aia_jax.report.figures import INK, QUIET, Page, measure

_PLOT_WIDTH, _PLOT_HEIGHT, _LEFT, _TOP, _BETWEEN = 3.9, 2.9, 0.75, 0.95, 0.85
_LOSS, _RATE = "#0068a8", "#8c5a00"
_WEIGHTS = {"raw": ("#0068a8", "-", "weights as trained"), "ema": ("#c8400a", "--", "averaged weights")}

Record = Mapping[str, Any]


def draw_curves(
    path: str | os.PathLike,
    records: Sequence[Record],
    metric: str,
    *,
    best: tuple[int, str] | None = None,
    title: str = "",
) -> None:
    """Draws a run's records as a PNG at `path`; what they do not hold is said in its place.

    Args:
        records: `{"step", "kind", ...}`, steps rising, see `training.logging`: of kind "train" with `loss` and
            `learning_rate`, of kinds that end in `_raw` and `_ema` with `epoch` and `metric`.
        metric: that chose the best epoch.
        best: its epoch and weights, "raw" or "ema".
    """
    page = Page(_LEFT + 3 * _PLOT_WIDTH + 2 * _BETWEEN + 0.35, _TOP + _PLOT_HEIGHT + 0.7)
    page.write_title(title, 0.3, 0.2)
    trained = [record for record in records if record["kind"] == "train"]
    for place, (name, color) in enumerate((("loss", _LOSS), ("learning_rate", _RATE))):
        axes = _axes(page, place, name.replace("_", " "), "step")
        _plot(page, axes, place, [(record["step"], record.get(name)) for record in trained], color=color)
    _draw_metric(page, records, metric, best)
    page.save(path)


def _draw_metric(page: Page, records: Sequence[Record], metric: str, best: tuple[int, str] | None) -> None:
    axes = _axes(page, 2, metric, "epoch")
    left, top = _LEFT + 2 * (_PLOT_WIDTH + _BETWEEN), _TOP - 0.2
    for weights, (color, style, meaning) in _WEIGHTS.items():
        evaluated = [record for record in records if str(record["kind"]).endswith(f"_{weights}")]
        points = [(record.get("epoch"), record.get(metric)) for record in evaluated]
        if not evaluated and weights == "ema":
            continue
        shown = _plot(page, axes, 2, points, color=color, linestyle=style, marker="o", markersize=3)
        page.write(meaning, left, top, color=color)
        left += measure(meaning) + 0.2
        at = [value for epoch, value in shown if best == (epoch, weights)]
        if at:
            axes.plot(best[0], at[0], "*", color=color, markersize=15, markeredgecolor="white", zorder=5)
            right = _LEFT + 3 * _PLOT_WIDTH + 2 * _BETWEEN
            page.write(f"★ best: epoch {best[0]}, {at[0]:.4f}", right, top - 0.2, color=color, ha="right")


def _axes(page: Page, place: int, name: str, below: str) -> Axes:
    left = _LEFT + place * (_PLOT_WIDTH + _BETWEEN)
    box = (left / page.width, 1 - (_TOP + _PLOT_HEIGHT) / page.height, *_size(page))
    axes = page.figure.add_axes(box)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set(color="#9a9a9a", linewidth=0.6)
    axes.tick_params(labelsize=8.5, labelcolor=QUIET, color="#9a9a9a", labelfontfamily="DejaVu Sans")
    page.write(name, left, _TOP - 0.42, size=10, color=INK)
    page.write(below, left + _PLOT_WIDTH, _TOP + _PLOT_HEIGHT + 0.36, color=QUIET, ha="right")
    return axes


def _size(page: Page) -> tuple[float, float]:
    return _PLOT_WIDTH / page.width, _PLOT_HEIGHT / page.height


def _plot(page: Page, axes: Axes, place: int, points: Sequence[tuple[Any, Any]], **style) -> list[tuple[float, float]]:
    """Plots what are finite numbers, and returns them."""
    shown = [(x, y) for x, y in points if _is_number(x) and _is_number(y)]
    if not shown:
        left = _LEFT + place * (_PLOT_WIDTH + _BETWEEN)
        page.write("no records", left + 0.15, _TOP + 0.15, color=QUIET)
        return []
    axes.plot(*zip(*shown, strict=True), linewidth=1.4, **style)
    return shown


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))
