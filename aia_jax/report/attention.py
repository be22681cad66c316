"""Where an annotator looked: one photo, and over it the attention map of every predicted label."""

import os
from collections.abc import Sequence

import numpy as np

from aia_jax.report.figures import FALSE_ALARM, HIT, QUIET, Page, check_images, check_lengths, measure, shorten
from aia_jax.report.heat import draw_scale, overlay, upsample

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
    """Draws `image` uint8 `[H, W, 3]` and then each of `maps` `[K, h, w]` >= 0 over it, as a PNG at `path`.

    Every map is scaled to its own peak. Below it stand its label, its score and whether the label is true
    (`hits` `[K]`). K may be 0: then the picture says that nothing was predicted.

    Raises:
        ValueError: the arguments differ in length, or an array is not of that shape and type.
    """
    check_images("image", image, 3)
    maps = np.asarray(maps, np.float32)
    check_lengths(maps=maps, labels=labels, scores=scores, hits=hits)
    if len(maps) and (maps.ndim != 3 or not maps.size):
        raise ValueError(f"maps must be [K, h, w] with h and w > 0, not {list(maps.shape)}")
    rows = -(-(len(maps) + 1) // 7)
    columns = max(-(-(len(maps) + 1) // rows), 2)
    width = min(2.4, 12.4 / columns - _GAP)
    height = width * image.shape[0] / image.shape[1]
    page = Page(max(2 * _MARGIN + columns * (width + _GAP) - _GAP, 5.4), _HEADER + rows * (height + _CAPTION) + 0.1)
    _write_header(page, title)
    for k in range(len(maps) + 1):
        left, top = _MARGIN + k % columns * (width + _GAP), _HEADER + k // columns * (height + _CAPTION)
        below = top + height + 0.1
        if k == 0:
            page.picture(image, left, top, width, height)
            page.write("the photo", left, below, color=QUIET)
            continue
        page.picture(overlay(image, upsample(maps[k - 1], image.shape[:2])), left, top, width, height)
        _write_caption(page, labels[k - 1], scores[k - 1], hits[k - 1], left, below, width)
    if not len(maps):
        page.write("nothing predicted:", _MARGIN + width + _GAP, _HEADER + 0.1, size=10)
        page.write("no score is above the threshold", _MARGIN + width + _GAP, _HEADER + 0.32, size=10)
    page.save(path)


def _write_header(page: Page, title: str) -> None:
    page.write_title(title, _MARGIN, 0.2)
    page.legend((HIT, FALSE_ALARM), _MARGIN, 0.49)
    draw_scale(page, _MARGIN + 1.75, 0.49)


def _write_caption(page: Page, label: str, score: float, hit: bool, left: float, top: float, width: float) -> None:
    mark = HIT if hit else FALSE_ALARM
    number = f"{score:.2f}"
    room = width - measure(number) - 0.1
    page.write(shorten(f"{mark.sign} {label}", room), left, top, color=mark.color)
    page.write(number, left + width, top, color=QUIET, ha="right")
