"""Image search: the photos that queries found with what each was found by, and ROC curves."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
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
    measure,
    shorten,
)
from aia_jax.report.heat import draw_scale, overlay, upsample

VISUAL, KEYWORDS = "#7b3294", "#1b7837"  # the two ends of ColorBrewer's PRGn, safe for the colour-blind
_MARGIN, _GAP, _HEADER = 0.3, 0.18, 0.82
_QUERY, _LINE, _SPLIT = 0.27, 0.175, 0.31
_MAT, _SHARE = "#f2f2f2", "#d7ecd9"
_MOST_KEYWORDS = 4

_PLOT = 4.3  # inches of the ROC curves' side
_PLOT_LEFT, _PLOT_TOP, _LIST = 0.8, 0.62, 2.7
_COLORS = ("#0068a8", "#c8400a", "#1b7837", "#7b3294", "#8c5a00", "#1a1a1a")
_STYLES = ("-", "--", ":", "-.")

Curve = tuple[np.ndarray, np.ndarray, float]


@dataclass(frozen=True, eq=False)
class SearchHit:
    """A photo that a query found.

    Args:
        image: uint8 `[H, W, 3]`, of any aspect.
        name: of its file; may be "".
        score: higher is better.
        right: None where that is not known.
        attention: `[h, w]` >= 0, where the visual attention looks.
        weights: of the map and of the keywords, with a sum of 1.
        keywords: with their attention, heaviest first; may be empty.

    Raises:
        ValueError: an array of another shape or type, or weights that are no shares.
    """

    image: np.ndarray
    name: str
    score: float
    right: bool | None
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
            raise ValueError(f"weights must be two shares with a sum of 1, not {tuple(map(float, self.weights))}")

    @property
    def mark(self) -> Mark | None:
        """How the hit turned out, where that is known."""
        return None if self.right is None else HIT if self.right else FALSE_ALARM

    def split(self) -> tuple[str, str]:
        """Both weights in two digits that sum to 1."""
        visual = round(float(self.weights[0]), 2)
        return f"{visual:.2f}", f"{1 - visual:.2f}"

    def render(self, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """The photo, and the same under its attention, both uint8 `[height, width, 3]`."""
        photo = np.asarray(Image.fromarray(self.image).resize((width, height), Image.Resampling.LANCZOS))
        heat = upsample(np.asarray(self.attention, np.float32), photo.shape[:2])
        return photo, np.round(255 * overlay(photo, heat)).astype(np.uint8)


def draw_search(
    path: str | os.PathLike, queries: Sequence[tuple[str, Sequence[SearchHit]]], *, title: str = ""
) -> None:
    """Draws each query above the photos it found, the best first, as a PNG at `path`.

    Each photo stands above itself under its attention, its name and score, how its score is split between the map and
    the keywords, and the keywords that weigh most.

    Raises:
        ValueError: there is no query.
    """
    if not queries:
        raise ValueError("at least one query is needed")
    most = max(1, *(len(hits) for _, hits in queries))
    columns = -(-most // -(-most // 8))
    width = min(1.65, 12.4 / columns - _GAP)
    aspects = [hit.image.shape[0] / hit.image.shape[1] for _, hits in queries for hit in hits]
    height = width * min(max(aspects, default=1), 1)
    lines = [
        ("" if k else text, hits[k : k + columns])
        for text, hits in queries
        for k in range(0, max(len(hits), 1), columns)
    ]
    heights = [_QUERY * bool(text) + _height(hits, height) for text, hits in lines]
    page = Page(max(2 * _MARGIN + columns * (width + _GAP) - _GAP, 7.2), _HEADER + sum(heights))
    _write_header(page, title, [hit for _, hits in queries for hit in hits])
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
    """Inches of a line of hits, with the space below it."""
    if not hits:
        return 0.5
    return 2 * height + 0.06 + 0.1 + _LINE + _SPLIT + max(len(_keyword_lines(hit)) for hit in hits) * _LINE + 0.3


def _write_header(page: Page, title: str, hits: Sequence[SearchHit]) -> None:
    """Title, marks where any are known, the colours of the split, and the scale of the maps."""
    page.write_title(title, _MARGIN, 0.2)
    left, top = _MARGIN, 0.49
    if any(hit.mark for hit in hits):
        page.legend((HIT, FALSE_ALARM), left, top)
        left += 1.75
    for name, color in (("visual", VISUAL), ("keywords", KEYWORDS)):
        page.fill(left, top - 0.005, 0.11, 0.11, color)
        page.write(name, left + 0.17, top, color=color)
        left += measure(name) + 0.37
    draw_scale(page, left + 0.2, top)


def _draw_hit(page: Page, hit: SearchHit, left: float, top: float, width: float, height: float) -> None:
    scale = min(width / hit.image.shape[1], height / hit.image.shape[0])
    pixels = [max(int(DPI * scale * extent), 2) for extent in (hit.image.shape[1], hit.image.shape[0])]
    own_width, own_height = (extent / DPI for extent in pixels)
    for image, framed in zip(hit.render(*pixels), (hit.mark, None), strict=True):
        page.fill(left, top, width, height, _MAT)
        axes = page.picture(
            image, left + (width - own_width) / 2, top + (height - own_height) / 2, own_width, own_height
        )
        if framed:
            axes.spines[:].set(color=framed.color, linewidth=3.0 if hit.right else 1.0)
        top += height + 0.06
    top += 0.04
    score = f"{hit.score:.2f}"
    page.write(score, left + width, top, color=QUIET, ha="right")
    named = f"{hit.mark.sign} {hit.name}" if hit.mark else hit.name
    page.write(shorten(named, width - measure(score) - 0.1), left, top, color=hit.mark.color if hit.mark else INK)
    _draw_split(page, hit, left, top + _LINE, width)
    top += _LINE + _SPLIT
    for text, weight in _keyword_lines(hit):
        if weight is None:
            page.write(text, left, top, color=QUIET)
        else:
            number = f"{weight:.2f}"
            page.fill(left, top - 0.03, width * min(max(weight, 0), 1), _LINE - 0.015, _SHARE)
            page.write(shorten(text, width - measure(number) - 0.14), left + 0.04, top)
            page.write(number, left + width, top, color=QUIET, ha="right")
        top += _LINE


def _draw_split(page: Page, hit: SearchHit, left: float, top: float, width: float) -> None:
    """A bar in two colours, and below its ends their numbers."""
    visual = width * hit.weights[0]
    page.fill(left, top, visual, 0.07, VISUAL)
    page.fill(left + visual, top, width - visual, 0.07, KEYWORDS)
    numbers = hit.split()
    page.write(numbers[0], left, top + 0.11, size=7.5, color=VISUAL)
    page.write(numbers[1], left + width, top + 0.11, size=7.5, color=KEYWORDS, ha="right")


def _keyword_lines(hit: SearchHit) -> list[tuple[str, float | None]]:
    """Lines of text with a weight, or with none where they are no keyword."""
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
    """Draws the shares of right over those of wrong pairs, as a PNG at `path`.

    Args:
        path: of the PNG.
        curves: by name, the shares of wrong `[P]` and of right pairs `[P]`, in 0..1, and the area under the curve.
        published: areas of other data, listed beside the plot.

    Raises:
        ValueError: there is no curve, or one of another shape or range.
    """
    if not curves:
        raise ValueError("at least one curve is needed")
    for name, (wrong, right, _) in curves.items():
        shapes = np.shape(wrong), np.shape(right)
        if shapes[0] != shapes[1] or len(shapes[0]) != 1 or shapes[0][0] < 2:
            raise ValueError(f"{name}: shares must be two [P] with P > 1, not {list(shapes[0])} and {list(shapes[1])}")
        if not all(((np.asarray(part) >= 0) & (np.asarray(part) <= 1)).all() for part in (wrong, right)):
            raise ValueError(f"{name}: shares must lie in 0..1")
    by_area = sorted(curves.items(), key=lambda item: -item[1][2])
    listed = 0.22 * (len(curves) + 1 + len(published or ())) + (0.5 if published else 0)
    page = Page(_PLOT_LEFT + _PLOT + 0.35 + _LIST + _MARGIN, _PLOT_TOP + max(_PLOT, listed) + 0.62)
    page.write_title(title, _MARGIN, 0.2)
    axes = _roc_axes(page)
    left, top = _PLOT_LEFT + _PLOT + 0.35, _PLOT_TOP + 0.05
    looks = zip(by_area, cycle((color, style) for style in _STYLES for color in _COLORS), strict=False)
    for place, ((name, (wrong, right, area)), (color, style)) in enumerate(looks):
        axes.plot(wrong, right, color=color, linestyle=style, linewidth=1.6, zorder=3 + len(curves) - place)
        _list_area(page, name, area, left, top, color=color, linestyle=style, linewidth=2.2)
        top += 0.22
    axes.plot((0, 1), (0, 1), color="#9a9a9a", linestyle=(0, (4, 3)), linewidth=1)
    _list_area(page, "chance", 0.5, left, top, color="#9a9a9a", linestyle=(0, (3, 2)), linewidth=1.2)
    if published:
        page.write("published, other data:", left, top + 0.45, color=QUIET)
        for place, (name, area) in enumerate(sorted(published.items(), key=lambda item: -item[1])):
            _list_area(page, name, area, left, top + 0.67 + 0.22 * place)
    page.save(path)


def _roc_axes(page: Page) -> Axes:
    box = (_PLOT_LEFT / page.width, 1 - (_PLOT_TOP + _PLOT) / page.height, _PLOT / page.width, _PLOT / page.height)
    axes = page.figure.add_axes(box, xlim=(0, 1), ylim=(0, 1), xticks=np.arange(6) / 5, yticks=np.arange(6) / 5)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set(color="#9a9a9a", linewidth=0.6)
    axes.tick_params(labelsize=8.5, labelcolor=QUIET, color="#9a9a9a", labelfontfamily="DejaVu Sans")
    below, middle = _PLOT_TOP + _PLOT + 0.36, _PLOT_TOP + _PLOT / 2
    page.write("share of wrong pairs", _PLOT_LEFT + _PLOT / 2, below, ha="center")
    page.write("share of right pairs", 0.36, middle, rotation=90, ha="center", va="center")
    return axes


def _list_area(page: Page, name: str, area: float, left: float, top: float, **line) -> None:
    """A line of the list: a sample of the curve's line, where it has one, its name and its area."""
    color = INK if line else QUIET
    if line:
        ends = [left / page.width, (left + 0.3) / page.width]
        page.figure.add_artist(Line2D(ends, [1 - (top + 0.05) / page.height] * 2, **line))
        left += 0.4
    right = _PLOT_LEFT + _PLOT + 0.35 + _LIST
    number = f"{area:.3f}"
    page.write(shorten(name, right - left - measure(number) - 0.15), left, top, color=color)
    page.write(number, right, top, color=color, ha="right")
