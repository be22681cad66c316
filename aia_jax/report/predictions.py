"""A grid of photos with their true and predicted labels."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aia_jax.report.figures import FALSE_ALARM, HIT, MISS, QUIET, Page, check_images, check_lengths, measure, shorten

_MARGIN, _GAP, _HEADER = 0.3, 0.18, 0.78
_LINE = 0.165
_MAX_LINES = 6


@dataclass(frozen=True)
class _Word:
    """A label set below a photo: `left` in inches from the photo's edge, `line` counted from 0."""

    text: str
    color: str
    left: float
    line: int


def draw_predictions(
    path: str | os.PathLike,
    images: np.ndarray,
    true: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    title: str = "",
) -> None:
    """Draws `images` uint8 `[K, H, W, 3]`, K >= 1, each above its labels, as a PNG at `path`.

    Below each photo stand the labels rightly predicted, then those missed, then the false alarms, told apart by colour
    and by mark; a list too long for its place ends in `+3 more`.

    Raises:
        ValueError: the arguments differ in length, or `images` is not of that shape and type.
    """
    check_images("images", images, 4)
    check_lengths(images=images, true=true, predicted=predicted)
    columns, width = _columns(len(images))
    height = width * images.shape[1] / images.shape[2]
    lists = [_set_words(_outcomes(*labels), width) for labels in zip(true, predicted, strict=True)]
    rows = -(-len(images) // columns)
    row_height = height + (max(words[-1].line for words in lists) + 1) * _LINE + 0.28
    page = Page(max(2 * _MARGIN + columns * (width + _GAP) - _GAP, 4.6), _HEADER + rows * row_height + 0.05)
    page.write_title(title, _MARGIN, 0.2)
    page.legend((HIT, MISS, FALSE_ALARM), _MARGIN, 0.49)
    for k, image in enumerate(images):
        left, top = _MARGIN + k % columns * (width + _GAP), _HEADER + k // columns * row_height
        page.picture(image, left, top, width, height)
        for word in lists[k]:
            page.write(word.text, left + word.left, top + height + 0.1 + word.line * _LINE, color=word.color)
    page.save(path)


def _columns(num_images: int) -> tuple[int, float]:
    """Columns and the width of a photo in inches: rows as even as can be, on a page as wide as a laptop's screen."""
    most = 6 if num_images <= 12 else 8
    columns = -(-num_images // -(-num_images // most))
    return columns, min(2.6, 12.4 / columns - _GAP)


def _outcomes(true: Sequence[str], predicted: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (text, colour): hits, then misses, then false alarms."""
    groups = (
        (HIT, [label for label in predicted if label in true]),
        (MISS, [label for label in true if label not in predicted]),
        (FALSE_ALARM, [label for label in predicted if label not in true]),
    )
    return [(f"{mark.sign} {label}", mark.color) for mark, labels in groups for label in labels]


def _set_words(words: list[tuple[str, str]], width: float) -> list[_Word]:
    """Sets the words in lines of `width` inches; the last line is kept for the count of what does not fit."""
    if not words:
        return [_Word("no labels", QUIET, 0.0, 0)]
    placed: list[_Word] = []
    left, line = 0.0, 0
    for text, color in words:
        text = shorten(text, width)
        extent = measure(text)
        if left and left + extent > width:
            left, line = 0.0, line + 1
        if line == _MAX_LINES - 1:
            return [*placed, _Word(f"+{len(words) - len(placed)} more", QUIET, 0.0, line)]
        placed.append(_Word(text, color, left, line))
        left += extent + 0.1
    return placed
