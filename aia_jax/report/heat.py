"""Attention maps as heat over photos."""

import numpy as np
from matplotlib import colormaps
from PIL import Image

from aia_jax.report.figures import QUIET, Page

_BAR = (1.5, 0.11)


def upsample(attention: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The map float32 `[h, w]` at the photo's size `(H, W)`, smooth, in 0..1, its peak at 1; one of zeros stays so."""
    height, width = shape
    smooth = Image.fromarray(attention).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.maximum(np.asarray(smooth), 0)
    return heat / max(float(heat.max()), np.finfo(np.float32).tiny)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Float `[H, W, 3]` in 0..1: the photo in pale grey, covered by the heat's colours the more the hotter.

    Args:
        image: uint8 `[H, W, 3]`.
        heat: `[H, W]` in 0..1.
    """
    grey = 0.25 + 0.7 * (image @ np.array([0.299, 0.587, 0.114]) / 255)
    cover = (0.85 * heat**0.8)[..., None]
    return np.clip((1 - cover) * grey[..., None] + cover * colormaps["inferno"](heat)[..., :3], 0, 1)


def draw_scale(page: Page, left: float, top: float) -> None:
    """The colours from 0 to a map's peak, drawn as the maps are, over the grey of a middling photo."""
    scale = np.broadcast_to(np.linspace(0, 1, 128, dtype=np.float32), (2, 128))
    page.write("0", left, top, color=QUIET)
    page.picture(overlay(np.full((2, 128, 3), 128, np.uint8), scale), left + 0.14, top - 0.005, *_BAR)
    page.write("the map's peak", left + 0.14 + _BAR[0] + 0.08, top, color=QUIET)
