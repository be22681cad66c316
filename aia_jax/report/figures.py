"""Shared parts of all pictures: pages, marks for predictions, text of known width, and attention heat maps."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from PIL import Image

from aia_jax.report.page_parts import HIT, Mark
from aia_jax.utils.files import atomic_path
from aia_jax.utils.messages import printable

DPI = 110
INK, QUIET = "#1a1a1a", "#6b6b6b"
_FAMILY = "DejaVu Sans"
_FRAME = {"color": "#9a9a9a", "linewidth": 0.6}
_RENDERER = RendererAgg(1, 1, DPI)  # measures text


class Page:
    """A white page of a PNG file. All positions are in inches from the top left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height, self._missing = width, height, set()
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def picture(
        self, image: np.ndarray, left: float, top: float, width: float, height: float, mark: Mark | None = None
    ) -> None:
        """Shows `image` `[H, W, 3]` in a frame with the colour of `mark`. The frame of a hit is thicker than others."""
        axes = self.figure.add_axes(self._box(left, top, width, height), xticks=[], yticks=[])
        axes.imshow(image, aspect="auto", interpolation="bicubic")
        axes.spines[:].set(**({"color": mark.color, "linewidth": 3.0 if mark is HIT else 1.0} if mark else _FRAME))

    def plot(self, left: float, top: float, width: float, height: float, **options) -> Axes:
        """Adds empty axes with a grid. `options` are passed to `Figure.add_axes`."""
        axes = self.figure.add_axes(self._box(left, top, width, height), **options)
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[:].set(**_FRAME)
        axes.tick_params(labelsize=8.5, labelcolor=QUIET, color="#9a9a9a", labelfontfamily=_FAMILY)
        return axes

    def write(self, text: str, left: float, top: float, *, size: float = 8.5, color: str = INK, **style) -> Text:
        """Writes one line of literal text: `$`, `_` and `%` are not special. Capital letters begin at `top`."""
        position = (left / self.width, 1 - (top + 0.76 * size / 72) / self.height)
        options = {"fontproperties": _font(text, size), "color": color, "parse_math": False} | style
        self._missing |= {letter for letter in text if not (letter.isspace() or _family_of(letter))}
        return self.figure.text(*position, plain(text), **options)

    def write_pair(
        self, text: str, number: str, left: float, top: float, width: float, color: str = INK, number_color: str = QUIET
    ) -> None:
        """Writes a text at the left end of a line, and a number at the right end. Shortens a text that does not fit."""
        self.write(number, left + width, top, color=number_color, ha="right")
        self.write(shorten(text, width - measure(number) - 0.1), left, top, color=color)

    def write_header(self, title: str, marks: Sequence[Mark] = ()) -> None:
        """Writes the title in bold, and below it the meanings of the marks. Shortens the title to the page's width."""
        left = 0.3
        self.write(shorten(title, self.width - 2 * left, 12, "bold"), left, 0.2, size=12, weight="bold")
        for mark in marks:
            text = f"{mark.sign} {mark.meaning}"
            self.write(text, left, 0.49, color=mark.color)
            left += measure(text) + 0.22

    def save(self, path: str | os.PathLike) -> None:
        """Writes the page atomically as a PNG. Prints the characters that no installed font has."""
        if self._missing:
            letters = printable("".join(sorted(self._missing)[:10]))
            print(f"{Path(path).name} shows □ for characters such as {letters}; install a font that has them")
        with atomic_path(Path(path)) as temporary:
            self.figure.savefig(temporary, format="png")

    def _box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Returns left, bottom, width and height as fractions of the figure."""
        bottom = 1 - (top + height) / self.height
        return left / self.width, bottom, width / self.width, height / self.height


def _font(text: str, size: float, weight: str = "normal") -> FontProperties:
    """Returns the fonts of `text`: DejaVu Sans, and others only for characters that it does not have."""
    families = dict.fromkeys((_FAMILY, *map(_family_of, text)))
    return FontProperties(family=[family for family in families if family], size=size, weight=weight)


@cache
def _family_of(letter: str) -> str:
    """Returns the first installed family with this character; "" if there is none."""
    fonts = ((font.name, font.fname) for font in fontManager.ttflist if not font.name.startswith("Last Resort"))
    return next((name for name, path in ((_FAMILY, findfont(_FAMILY)), *fonts) if _has(path, letter)), "")


def _has(path: str, letter: str) -> bool:
    try:
        font = get_font(path)
    except (OSError, RuntimeError):  # a font that was removed or is damaged
        return False
    return font.scalable and font.get_char_index(ord(letter)) > 0


def plain(text: str) -> str:
    """Returns `text` on one line. Replaces characters that no installed font has by `□`."""
    return "".join(letter if _family_of(letter) else "□" for letter in " ".join(text.split()))


def measure(text: str, size: float = 8.5, weight: str = "normal") -> float:
    """Returns the width of a line of text in inches."""
    return _RENDERER.get_text_width_height_descent(plain(text), _font(text, size, weight), ismath=False)[0] / DPI


def shorten(text: str, width: float, size: float = 8.5, weight: str = "normal") -> str:
    """Cuts `text` to at most `width` inches, with an ellipsis at the end."""
    if measure(text, size, weight) <= width:
        return text
    kept = bisect_right(range(1, len(text)), width, key=lambda end: measure(text[:end] + "…", size, weight))
    return text[:kept].rstrip() + "…"


def upsample(attention: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resizes a float32 map `[h, w]` to `shape` `(H, W)` and scales its peak to 1. A map of zeros stays zero."""
    height, width = shape
    smooth = Image.fromarray(attention).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.maximum(np.asarray(smooth), 0)
    return heat / max(float(heat.max()), np.finfo(np.float32).tiny)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draws a heat map over a pale grey copy of a photo. Where the heat is higher, the heat map is more opaque.

    Args:
        image: uint8 `[H, W, 3]`.
        heat: `[H, W]`, from 0 to 1.

    Returns:
        Float `[H, W, 3]`, from 0 to 1.
    """
    grey = 0.25 + 0.7 * (image @ np.array([0.299, 0.587, 0.114]) / 255)
    cover = (0.85 * heat**0.8)[..., None]
    return np.clip((1 - cover) * grey[..., None] + cover * colormaps["inferno"](heat)[..., :3], 0, 1)


def draw_scale(page: Page, left: float, top: float) -> None:
    """Draws the colour scale of the heat maps, from 0 to the peak of a map, over medium grey."""
    scale = np.broadcast_to(np.linspace(0, 1, 128, dtype=np.float32), (2, 128))
    page.write("0", left, top, color=QUIET)
    page.picture(overlay(np.full((2, 128, 3), 128, np.uint8), scale), left + 0.14, top - 0.005, 1.5, 0.11)
    page.write("peak of each map", left + 1.72, top, color=QUIET)
