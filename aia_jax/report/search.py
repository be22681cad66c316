"""Draws ROC curves of image search."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.lines import Line2D

from aia_jax.report.figures import INK, QUIET, Page

_MARGIN = 0.3
_PLOT = 4.3  # side of the plot in inches
_PLOT_LEFT, _PLOT_TOP = 0.8, 0.62
_LIST_LEFT, _LIST_RIGHT = _PLOT_LEFT + _PLOT + 0.35, _PLOT_LEFT + _PLOT + 3.05
_COLORS = ("#0068a8", "#c8400a", "#1b7837", "#7b3294", "#8c5a00", "#1a1a1a")

Curve = tuple[np.ndarray, np.ndarray, float]


def draw_roc(
    path: str | os.PathLike, curves: Mapping[str, Curve], *, published: Mapping[str, float], title: str = ""
) -> None:
    """Draws ROC curves as a PNG at `path`.

    Args:
        curves: `{name: (false positive rates [P], true positive rates [P], area under the curve)}`, all from 0 to 1.
        published: `{name: area}` from papers, measured on other data. These areas are listed beside the plot.
    """
    by_area = sorted(curves.items(), key=lambda item: -item[1][2])
    listed = 0.22 * (len(curves) + 1 + len(published)) + 0.5
    page = Page(_LIST_RIGHT + _MARGIN, _PLOT_TOP + max(_PLOT, listed) + 0.62)
    page.write_header(title)
    limits = {"xlim": (0, 1), "ylim": (0, 1), "xticks": np.arange(6) / 5, "yticks": np.arange(6) / 5}
    axes = page.plot(_PLOT_LEFT, _PLOT_TOP, _PLOT, _PLOT, **limits)
    page.write("false positive rate", _PLOT_LEFT + _PLOT / 2, _PLOT_TOP + _PLOT + 0.36, ha="center")
    page.write("true positive rate", 0.36, _PLOT_TOP + _PLOT / 2, rotation=90, ha="center", va="center")
    top = _PLOT_TOP + 0.05
    for place, (name, (false_rates, true_rates, area)) in enumerate(by_area):
        color = _COLORS[place % len(_COLORS)]
        axes.plot(false_rates, true_rates, color=color, linewidth=1.6, zorder=3 + len(curves) - place)
        _list_area(page, name, area, top, color=color, linewidth=2.2)
        top += 0.22
    axes.plot((0, 1), (0, 1), color="#9a9a9a", linestyle=(0, (4, 3)), linewidth=1)
    _list_area(page, "chance", 0.5, top, color="#9a9a9a", linestyle=(0, (3, 2)), linewidth=1.2)
    page.write("published, other data:", _LIST_LEFT, top + 0.45, color=QUIET)
    for place, (name, area) in enumerate(sorted(published.items(), key=lambda item: -item[1])):
        _list_area(page, name, area, top + 0.67 + 0.22 * place)
    page.save(path)


def _list_area(page: Page, name: str, area: float, top: float, **line) -> None:
    """Writes the name and area of a curve beside the plot, after a short line in the style `line`, if given."""
    left = _LIST_LEFT
    if line:
        ends = [left / page.width, (left + 0.3) / page.width]
        page.figure.add_artist(Line2D(ends, [1 - (top + 0.05) / page.height] * 2, **line))
        left += 0.4
    color = INK if line else QUIET
    page.write_pair(name, f"{area:.3f}", left, top, _LIST_RIGHT - left, color, color)
