"""Draws a photo and, for each predicted label, a copy of the photo with the attention map of this label."""

import os
from collections.abc import Sequence

import numpy as np

from aia_jax.report.figures import QUIET, Page, draw_scale, overlay, upsample
from aia_jax.report.page_parts import FALSE_ALARM, HIT

_MARGIN, _GAP, _HEADER = 0.3, 0.16, 0.78
_CAPTION = 0.36


def draw_attention(
    path: str | os.PathLike,
    image: np.ndarray,
    maps: np.ndarray,
    labels: Sequence[str],
    scores: Sequence[float],
    *,
    hits: Sequence[bool],
    title: str = "",
) -> None:
    """Draws a photo and its attention maps as a PNG at `path`.

    Args:
        image: uint8 `[H, W, 3]`.
        maps: `[K, h, w]` >= 0, attention maps of the K predicted labels. Each map is scaled to a peak of 1. K may be 0.
        labels, scores: `[K]`, label names and scores, which are written below the maps.
        hits: `[K]`, whether each label is true.
    """
    maps = np.asarray(maps, np.float32)
    rows = -(-(len(maps) + 1) // 7)
    columns = max(-(-(len(maps) + 1) // rows), 2)
    width = min(2.4, 12.4 / columns - _GAP)
    height = width * image.shape[0] / image.shape[1]
    page = Page(max(2 * _MARGIN + columns * (width + _GAP) - _GAP, 5.4), _HEADER + rows * (height + _CAPTION) + 0.1)
    page.write_header(title, (HIT, FALSE_ALARM))
    draw_scale(page, _MARGIN + 1.75, 0.49)
    for k in range(len(maps) + 1):
        left, top = _MARGIN + k % columns * (width + _GAP), _HEADER + k // columns * (height + _CAPTION)
        below = top + height + 0.1
        if k == 0:
            page.picture(image, left, top, width, height)
            page.write("photo", left, below, color=QUIET)
            continue
        page.picture(overlay(image, upsample(maps[k - 1], image.shape[:2])), left, top, width, height)
        mark = HIT if hits[k - 1] else FALSE_ALARM
        page.write_pair(f"{mark.sign} {labels[k - 1]}", f"{scores[k - 1]:.2f}", left, below, width, mark.color)
    if not len(maps):
        page.write("no label predicted:", _MARGIN + width + _GAP, _HEADER + 0.1, size=10)
        page.write("no score is above the threshold", _MARGIN + width + _GAP, _HEADER + 0.32, size=10)
    page.save(path)
