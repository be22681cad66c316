"""Draws ROC curves of image search, and the photos found for queries, with their attention and keywords."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.lines import Line2D
from PIL import Image

from aia_jax.report.figures import (
    DPI,
    FALSE_ALARM,
    HIT,
    INK,
    QUIET,
    Mark,
    Page,
    check_images,
    draw_scale,
    measure,
    overlay,
    shorten,
    upsample,
)

VISUAL, KEYWORDS = "#7b3294", "#1b7837"  # ColorBrewer's PRGn, which colour-blind people can distinguish
_MARGIN, _GAP, _HEADER = 0.3, 0.18, 0.82
_QUERY, _LINE, _SPLIT = 0.27, 0.175, 0.31
_MAT, _BAR = "#f2f2f2", "#d7ecd9"
_MOST_KEYWORDS = 4

_PLOT = 4.3  # side of the ROC plot in inches
_PLOT_LEFT, _PLOT_TOP = 0.8, 0.62
_LIST_LEFT, _LIST_RIGHT = _PLOT_LEFT + _PLOT + 0.35, _PLOT_LEFT + _PLOT + 3.05
_COLORS = ("#0068a8", "#c8400a", "#1b7837", "#7b3294", "#8c5a00", "#1a1a1a")
_STYLES = ("-", "--", ":", "-.")

Curve = tuple[np.ndarray, np.ndarray, float]


@dataclass(frozen=True, eq=False)
class SearchHit:
    """A photo in the results of a query.

    Args:
        image: uint8 `[H, W, 3]`, with any aspect ratio.
        name: file name of the photo, or "" to show no name.
        score: score for the query. A higher score is better.
        correct: whether the photo is relevant. None means unknown.
        attention: `[h, w]` >= 0, the visual attention to each cell of the feature map.
        weights: weight of the feature map and weight of the keywords. The sum is 1.
        keywords: pairs of a keyword and its attention weight, highest weight first. The tuple may be empty.

    Raises:
        ValueError: an array has the wrong shape or type, or `weights` are negative or do not have the sum 1.
    """

    image: np.ndarray
    name: str
    score: float
    correct: bool | None
    attention: np.ndarray
    weights: tuple[float, float]
    keywords: tuple[tuple[str, float], ...]

    def __post_init__(self):
        check_images("image", self.image, 3)
        attention = np.asarray(self.attention, np.float32)
        if attention.ndim != 2 or not attention.size:
            raise ValueError(f"attention must be [h, w] with h and w > 0, not {list(attention.shape)}")
        if not np.isfinite(attention).all() or attention.min() < 0:
            raise ValueError("attention must be finite and at least 0")
        if len(self.weights) != 2 or min(self.weights) < 0 or not abs(sum(self.weights) - 1) < 1e-2:
            raise ValueError(f"weights must be two fractions with a sum of 1, not {tuple(map(float, self.weights))}")

    @property
    def mark(self) -> Mark | None:
        """The mark for a correct or a wrong photo. None if `correct` is None."""
        return None if self.correct is None else HIT if self.correct else FALSE_ALARM

    def rounded_weights(self) -> tuple[str, str]:
        """Returns both weights as text with two digits. The rounded weights have a sum of 1."""
        visual = round(float(self.weights[0]), 2)
        return f"{visual:.2f}", f"{1 - visual:.2f}"

    def render(self, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the photo, and a copy of it with the attention as a heat map, both uint8 `[height, width, 3]`."""
        photo = np.asarray(Image.fromarray(self.image).resize((width, height), Image.Resampling.LANCZOS))
        heat = upsample(np.asarray(self.attention, np.float32), photo.shape[:2])
        return photo, np.round(255 * overlay(photo, heat)).astype(np.uint8)


def draw_search(
    path: str | os.PathLike, queries: Sequence[tuple[str, Sequence[SearchHit]]], *, title: str = ""
) -> None:
    """Draws each query and its results, best first, as a PNG at `path`. Raises ValueError if there is no query.

    Below each photo are:
    - a copy of the photo with the visual attention as a heat map
    - the name and the score of the photo
    - the weight of the feature map and the weight of the keywords
    - the keywords with the highest weights
    """
    if not queries:
        raise ValueError("at least one query is needed")
    all_hits = [hit for _, hits in queries for hit in hits]
    most = max(1, *(len(hits) for _, hits in queries))
    columns = -(-most // -(-most // 8))
    width = min(1.65, 12.4 / columns - _GAP)
    height = width * min(max((hit.image.shape[0] / hit.image.shape[1] for hit in all_hits), default=1), 1)
    lines = [
        ("" if k else text, hits[k : k + columns])
        for text, hits in queries
        for k in range(0, max(len(hits), 1), columns)
    ]
    heights = [_QUERY * bool(text) + _height(hits, height) for text, hits in lines]
    page = Page(max(2 * _MARGIN + columns * (width + _GAP) - _GAP, 7.2), _HEADER + sum(heights))
    _write_header(page, title, any(hit.mark for hit in all_hits))
    top = _HEADER
    for (text, hits), extent in zip(lines, heights, strict=True):
        if text:
            heading = shorten(f"“{text}”", page.width - 2 * _MARGIN, 10, "bold")
            page.write(heading, _MARGIN, top, size=10, weight="bold")
        below = top + _QUERY * bool(text)
        if not hits:
            page.write("nothing found", _MARGIN, below, color=QUIET)
        for place, hit in enumerate(hits):
            _draw_hit(page, hit, _MARGIN + place * (width + _GAP), below, width, height)
        top += extent
    page.save(path)


def _height(hits: Sequence[SearchHit], height: float) -> float:
    """Returns the height of a line of hits and of the space below this line, in inches."""
    if not hits:
        return 0.5
    return 2 * height + 0.06 + 0.1 + _LINE + _SPLIT + max(len(_keyword_lines(hit)) for hit in hits) * _LINE + 0.3


def _write_header(page: Page, title: str, with_marks: bool) -> None:
    page.write_header(title, (HIT, FALSE_ALARM) if with_marks else ())
    left, top = _MARGIN + (1.75 if with_marks else 0), 0.49
    for name, color in (("visual", VISUAL), ("keywords", KEYWORDS)):
        page.fill(left, top - 0.005, 0.11, 0.11, color)
        page.write(name, left + 0.17, top, color=color)
        left += measure(name) + 0.37
    draw_scale(page, left + 0.2, top)


def _draw_hit(page: Page, hit: SearchHit, left: float, top: float, width: float, height: float) -> None:
    scale = min(width / hit.image.shape[1], height / hit.image.shape[0])
    pixels = [max(int(DPI * scale * extent), 2) for extent in (hit.image.shape[1], hit.image.shape[0])]
    own_width, own_height = (extent / DPI for extent in pixels)
    for image, mark in zip(hit.render(*pixels), (hit.mark, None), strict=True):
        page.fill(left, top, width, height, _MAT)
        x, y = left + (width - own_width) / 2, top + (height - own_height) / 2
        page.picture(image, x, y, own_width, own_height, mark)
        top += height + 0.06
    top += 0.04
    name, color = (f"{hit.mark.sign} {hit.name}", hit.mark.color) if hit.mark else (hit.name, INK)
    page.write_pair(name, f"{hit.score:.2f}", left, top, width, color)
    top += _LINE
    visual, numbers = width * hit.weights[0], hit.rounded_weights()
    page.fill(left, top, visual, 0.07, VISUAL)
    page.fill(left + visual, top, width - visual, 0.07, KEYWORDS)
    page.write(numbers[0], left, top + 0.11, size=7.5, color=VISUAL)
    page.write(numbers[1], left + width, top + 0.11, size=7.5, color=KEYWORDS, ha="right")
    top += _SPLIT
    for text, weight in _keyword_lines(hit):
        if weight is None:
            page.write(text, left, top, color=QUIET)
        else:
            page.fill(left, top - 0.03, width * min(max(weight, 0), 1), _LINE - 0.015, _BAR)
            page.write_pair(text, f"{weight:.2f}", left + 0.04, top, width - 0.04)
        top += _LINE


def _keyword_lines(hit: SearchHit) -> list[tuple[str, float | None]]:
    """Returns pairs (keyword, weight). The texts "no keywords" and "+3 more" have None instead of a weight."""
    if not hit.keywords:
        return [("no keywords", None)]
    if len(hit.keywords) <= _MOST_KEYWORDS + 1:
        return list(hit.keywords)
    return [*hit.keywords[:_MOST_KEYWORDS], (f"+{len(hit.keywords) - _MOST_KEYWORDS} more", None)]


def draw_roc(
    path: str | os.PathLike,
    curves: Mapping[str, Curve],
    *,
    published: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Draws ROC curves as a PNG at `path`.

    Args:
        curves: `{name: (false positive rates [P], true positive rates [P], area under the curve)}`, all from 0 to 1.
        published: `{name: area}` from papers, measured on other data. These areas are listed beside the plot.

    Raises:
        ValueError: there is no curve, or a curve has the wrong shape or range.
    """
    _check_curves(curves)
    by_area = sorted(curves.items(), key=lambda item: -item[1][2])
    listed = 0.22 * (len(curves) + 1 + len(published or ())) + (0.5 if published else 0)
    page = Page(_LIST_RIGHT + _MARGIN, _PLOT_TOP + max(_PLOT, listed) + 0.62)
    page.write_header(title)
    limits = {"xlim": (0, 1), "ylim": (0, 1), "xticks": np.arange(6) / 5, "yticks": np.arange(6) / 5}
    axes = page.plot(_PLOT_LEFT, _PLOT_TOP, _PLOT, _PLOT, **limits)
    page.write("false positive rate", _PLOT_LEFT + _PLOT / 2, _PLOT_TOP + _PLOT + 0.36, ha="center")
    page.write("true positive rate", 0.36, _PLOT_TOP + _PLOT / 2, rotation=90, ha="center", va="center")
    top = _PLOT_TOP + 0.05
    looks = zip(by_area, cycle((color, style) for style in _STYLES for color in _COLORS), strict=False)
    for place, ((name, (false_rates, true_rates, area)), (color, style)) in enumerate(looks):
        order = 3 + len(curves) - place  # draws the best curve on top
        axes.plot(false_rates, true_rates, color=color, linestyle=style, linewidth=1.6, zorder=order)
        _list_area(page, name, area, top, color=color, linestyle=style, linewidth=2.2)
        top += 0.22
    axes.plot((0, 1), (0, 1), color="#9a9a9a", linestyle=(0, (4, 3)), linewidth=1)
    _list_area(page, "chance", 0.5, top, color="#9a9a9a", linestyle=(0, (3, 2)), linewidth=1.2)
    if published:
        page.write("published, other data:", _LIST_LEFT, top + 0.45, color=QUIET)
        for place, (name, area) in enumerate(sorted(published.items(), key=lambda item: -item[1])):
            _list_area(page, name, area, top + 0.67 + 0.22 * place)
    page.save(path)


def _check_curves(curves: Mapping[str, Curve]) -> None:
    if not curves:
        raise ValueError("at least one curve is needed")
    for name, (*rates, _) in curves.items():
        shapes = [list(np.shape(part)) for part in rates]
        if shapes[0] != shapes[1] or len(shapes[0]) != 1 or shapes[0][0] < 2:
            raise ValueError(f"{name}: rates must be two [P] with P > 1, not {shapes[0]} and {shapes[1]}")
        if not all(((np.asarray(part) >= 0) & (np.asarray(part) <= 1)).all() for part in rates):
            raise ValueError(f"{name}: rates must lie in 0..1")


def _list_area(page: Page, name: str, area: float, top: float, **line) -> None:
    """Writes the name and area of a curve beside the plot, after a short line in the style `line`, if given."""
    left = _LIST_LEFT
    if line:
        ends = [left / page.width, (left + 0.3) / page.width]
        page.figure.add_artist(Line2D(ends, [1 - (top + 0.05) / page.height] * 2, **line))
        left += 0.4
    color = INK if line else QUIET
    page.write_pair(name, f"{area:.3f}", left, top, _LIST_RIGHT - left, color, color)
