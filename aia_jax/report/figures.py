"""What the pictures share: a page laid out in inches, marks, plain text, and saving that leaves no half file."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.text import Text

DPI = 110
INK, QUIET = "#1a1a1a", "#6b6b6b"


@dataclass(frozen=True)
class Mark:
    """How a prediction turned out: told apart by sign and by colour, both safe for the colour-blind."""

    sign: str
    color: str
    meaning: str


HIT = Mark("✓", "#0068a8", "hit")
MISS = Mark("○", "#8c5a00", "missed")
FALSE_ALARM = Mark("✗", "#c8400a", "false alarm")


class Page:
    """A white page measured in inches from its top left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def picture(self, image: np.ndarray, left: float, top: float, width: float, height: float) -> Axes:
        """Shows `image` `[H, W, 3]` in a box, with a thin frame."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box, xticks=[], yticks=[])
        axes.imshow(image, aspect="auto", interpolation="bicubic")
        axes.spines[:].set(color="#9a9a9a", linewidth=0.6)
        return axes

    def fill(self, left: float, top: float, width: float, height: float, color: str) -> None:
        """Fills a box with one colour, behind all that is written."""
        corner = (left / self.width, 1 - (top + height) / self.height)
        size = (width / self.width, height / self.height)
        self.figure.add_artist(Rectangle(corner, *size, facecolor=color, linewidth=0, zorder=-1))

    def write(self, text: str, left: float, top: float, *, size: float = 8.5, color: str = INK, **style) -> Text:
        """Writes one line, literally: `$`, `_` and `%` mean nothing special. `top` is where its capitals begin."""
        position = (left / self.width, 1 - (top + 0.76 * size / 72) / self.height)
        options = {"fontproperties": _font(size), "color": color, "parse_math": False} | style
        return self.figure.text(*position, plain(text), **options)

    def write_title(self, title: str, left: float, top: float) -> None:
        """Writes the title in bold, cut where the page ends."""
        self.write(shorten(title, self.width - 2 * left, 12, "bold"), left, top, size=12, weight="bold")

    def legend(self, marks: Sequence[Mark], left: float, top: float) -> None:
        """The meaning of the marks, in one line."""
        for mark in marks:
            text = f"{mark.sign} {mark.meaning}"
            self.write(text, left, top, color=mark.color)
            left += measure(text) + 0.22

    def save(self, path: str | os.PathLike) -> None:
        """Writes the page as a PNG, whole or not at all."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            self.figure.savefig(partial, format="png")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _font(size: float, weight: str = "normal") -> FontProperties:
    return FontProperties(family="DejaVu Sans", size=size, weight=weight)


@cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, DPI)


@cache
def _known_characters() -> frozenset[int]:
    return frozenset(get_font(findfont(_font(8.5))).get_charmap())


def plain(text: str) -> str:
    """`text` in one line, characters that the font cannot show as `□`."""
    return "".join(letter if ord(letter) in _known_characters() else "□" for letter in " ".join(text.split()))


def measure(text: str, size: float = 8.5, weight: str = "normal") -> float:
    """Width of one line in inches."""
    return _renderer().get_text_width_height_descent(plain(text), _font(size, weight), ismath=False)[0] / DPI


def shorten(text: str, width: float, size: float = 8.5, weight: str = "normal") -> str:
    """`text`, cut with an ellipsis where it is wider than `width` inches."""
    if measure(text, size, weight) <= width:
        return text
    kept = bisect_right(range(1, len(text)), width, key=lambda end: measure(text[:end] + "…", size, weight))
    return text[:kept].rstrip() + "…"


def check_lengths(**values: Sequence) -> None:
    """Raises ValueError, with every name and length, unless all are of one length."""
    lengths = {name: len(value) for name, value in values.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"the arguments must be of one length, but: {listed}")


def check_images(name: str, images: np.ndarray, rank: int) -> None:
    """Raises ValueError unless `images` is uint8 `[..., H, W, 3]` of `rank` axes, none of them empty."""
    if images.ndim != rank or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
        letters = "[K, H, W, 3]" if rank == 4 else "[H, W, 3]"
        raise ValueError(f"{name} must be uint8 {letters}, none of them 0, not {images.dtype} {list(images.shape)}")
