"""Queries with what they found: captions with photos, photos with captions."""

import os
from collections.abc import Sequence

import numpy as np

from aia_jax.report.figures import FALSE_ALARM, HIT, Page, shorten

_MARGIN, _GAP, _HEADER = 0.3, 0.12, 0.78
_PHOTO, _LINE = 1.15, 0.175
_TEXT = 5.6  # inches of a caption
_FRAME = 3.0

TextQuery = tuple[str, Sequence[tuple[np.ndarray, bool]]]
ImageQuery = tuple[np.ndarray, Sequence[tuple[str, bool]]]


def draw_retrieval(
    path: str | os.PathLike, text_queries: Sequence[TextQuery], image_queries: Sequence[ImageQuery], *, title: str = ""
) -> None:
    """Draws each caption above the photos it found, and each photo beside the captions it found, the best first.

    Right ones are told apart by mark, colour and frame.

    Args:
        path: of the PNG.
        text_queries: a caption, and (uint8 `[H, W, 3]`, whether right) of each hit.
        image_queries: a photo, and (caption, whether right) of each hit.

    Raises:
        ValueError: there is no query.
    """
    if not text_queries or not image_queries:
        raise ValueError("at least one query of each kind is needed")
    most = max(len(hits) for _, hits in text_queries)
    left_width = most * (_PHOTO + _GAP) - _GAP
    second = _MARGIN + left_width + 2 * _MARGIN
    row_height = _PHOTO + 2 * _LINE + 0.2
    rows = max(len(text_queries), len(image_queries))
    page = Page(second + _PHOTO + _GAP + _TEXT + _MARGIN, _HEADER + rows * row_height)
    page.write_title(title, _MARGIN, 0.2)
    page.legend((HIT, FALSE_ALARM), _MARGIN, 0.49)
    for row, (caption, hits) in enumerate(text_queries):
        top = _HEADER + row * row_height
        page.write(shorten(f"“{caption}”", left_width), _MARGIN, top)
        for place, (photo, right) in enumerate(hits):
            mark = HIT if right else FALSE_ALARM
            left = _MARGIN + place * (_PHOTO + _GAP)
            axes = page.picture(photo, left, top + _LINE, _PHOTO, _PHOTO)
            axes.spines[:].set(color=mark.color, linewidth=_FRAME if right else 1.0)
            page.write(mark.sign, left, top + _LINE + _PHOTO + 0.02, color=mark.color)
    for row, (photo, hits) in enumerate(image_queries):
        top = _HEADER + row * row_height
        page.picture(photo, second, top + _LINE, _PHOTO, _PHOTO)
        for place, (caption, right) in enumerate(hits):
            mark = HIT if right else FALSE_ALARM
            text = shorten(f"{mark.sign} {caption}", _TEXT)
            page.write(text, second + _PHOTO + _GAP, top + _LINE * (1.2 + 1.2 * place), color=mark.color)
    page.save(path)
