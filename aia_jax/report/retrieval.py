"""Draws queries of image-text retrieval (captions and photos) with their results."""

import os
from collections.abc import Sequence

import numpy as np

from aia_jax.report.figures import Page, shorten
from aia_jax.report.page_parts import FALSE_ALARM, HIT

_MARGIN, _GAP, _HEADER = 0.3, 0.12, 0.78
_PHOTO, _LINE = 1.15, 0.175
_TEXT = 5.6  # width of a caption in inches
_ROW = _PHOTO + 2 * _LINE + 0.2

TextQuery = tuple[str, Sequence[tuple[np.ndarray, bool]]]
ImageQuery = tuple[np.ndarray, Sequence[tuple[str, bool]]]


def draw_retrieval(
    path: str | os.PathLike, text_queries: Sequence[TextQuery], image_queries: Sequence[ImageQuery], *, title: str = ""
) -> None:
    """Draws results of retrieval, best first, as a PNG at `path`. Marks and colours show which results are correct.

    The results of a caption are below the caption. The results of a photo are to the right of the photo.

    Args:
        text_queries: pairs (caption, results). A result is a pair (photo uint8 `[H, W, 3]`, whether it is correct).
        image_queries: pairs (photo, results). A result is a pair (caption, whether it is correct).
    """
    left_width = max(len(results) for _, results in text_queries) * (_PHOTO + _GAP) - _GAP
    second = _MARGIN + left_width + 2 * _MARGIN
    page = Page(second + _PHOTO + _GAP + _TEXT + _MARGIN, _HEADER + max(len(text_queries), len(image_queries)) * _ROW)
    page.write_header(title, (HIT, FALSE_ALARM))
    for row, (caption, photos) in enumerate(text_queries):
        top = _HEADER + row * _ROW
        page.write(shorten(f"“{caption}”", left_width), _MARGIN, top)
        for place, (photo, correct) in enumerate(photos):
            mark = HIT if correct else FALSE_ALARM
            left = _MARGIN + place * (_PHOTO + _GAP)
            page.picture(photo, left, top + _LINE, _PHOTO, _PHOTO, mark)
            page.write(mark.sign, left, top + _LINE + _PHOTO + 0.02, color=mark.color)
    for row, (photo, captions) in enumerate(image_queries):
        top = _HEADER + row * _ROW
        page.picture(photo, second, top + _LINE, _PHOTO, _PHOTO)
        for place, (caption, correct) in enumerate(captions):
            mark = HIT if correct else FALSE_ALARM
            text = shorten(f"{mark.sign} {caption}", _TEXT)
            page.write(text, second + _PHOTO + _GAP, top + _LINE * (1.2 + 1.2 * place), color=mark.color)
    page.save(path)
