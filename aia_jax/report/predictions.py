"""Draws photos in a grid with their true and predicted labels."""

import os
from collections.abc import Sequence

import numpy as np

from aia_jax.report.figures import QUIET, Page, measure, shorten
from aia_jax.report.page_parts import FALSE_ALARM, HIT, MISS

_MARGIN, _GAP, _HEADER = 0.3, 0.18, 0.78
_LINE = 0.165
_MAX_LINES = 6


def draw_predictions(
    path: str | os.PathLike,
    images: np.ndarray,
    true: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    title: str = "",
) -> None:
    """Draws photos as a PNG at `path`. Colours and marks distinguish hits, missed labels and false alarms.

    Args:
        images: uint8 `[K, H, W, 3]` of K >= 1 photos.
        true, predicted: labels of each photo. Labels that do not fit are replaced by text such as `+3 more`.
    """
    columns = -(-len(images) // -(-len(images) // (6 if len(images) <= 12 else 8)))  # rows of similar length
    width = min(2.6, 12.4 / columns - _GAP)
    height = width * images.shape[1] / images.shape[2]
    lists = [_set_words(_marked_labels(*labels), width) for labels in zip(true, predicted, strict=True)]
    rows = -(-len(images) // columns)
    row_height = height + (max(line for words in lists for *_, line in words) + 1) * _LINE + 0.28
    page = Page(max(2 * _MARGIN + columns * (width + _GAP) - _GAP, 4.6), _HEADER + rows * row_height + 0.05)
    page.write_header(title, (HIT, MISS, FALSE_ALARM))
    for k, image in enumerate(images):
        left, top = _MARGIN + k % columns * (width + _GAP), _HEADER + k // columns * row_height
        page.picture(image, left, top, width, height)
        for text, color, indent, line in lists[k]:
            page.write(text, left + indent, top + height + 0.1 + line * _LINE, color=color)
    page.save(path)


def _marked_labels(true: Sequence[str], predicted: Sequence[str]) -> list[tuple[str, str]]:
    """Returns a pair (text, colour) for each label: hits, then missed labels, then false alarms."""
    groups = (
        (HIT, [label for label in predicted if label in true]),
        (MISS, [label for label in true if label not in predicted]),
        (FALSE_ALARM, [label for label in predicted if label not in true]),
    )
    return [(f"{mark.sign} {label}", mark.color) for mark, labels in groups for label in labels]


def _set_words(words: list[tuple[str, str]], width: float) -> list[tuple[str, str, float, int]]:
    """Places labels, pairs (text, colour), in lines of `width` inches. The last line has the number of further labels.

    Returns:
        For each label: text, colour, distance from the left edge in inches, index of the line.
    """
    if not words:
        return [("no labels", QUIET, 0.0, 0)]
    placed = []
    left, line = 0.0, 0
    for text, color in words:
        text = shorten(text, width)
        extent = measure(text)
        if left and left + extent > width:
            left, line = 0.0, line + 1
        if line == _MAX_LINES - 1:
            return [*placed, (f"+{len(words) - len(placed)} more", QUIET, 0.0, line)]
        placed.append((text, color, left, line))
        left += extent + 0.1
    return placed
