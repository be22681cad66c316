"""Attention maps as heat over photos."""

import numpy as np
from matplotlib import colormaps
from PIL import Image

from aia_jax.report.figures import QUIET, Page


def upsample(attention: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resizes a map float32 `[h, w]` to `shape` `(H, W)` and scales its peak to 1; zeros stay zeros."""
    height, width = shape
    smooth = Image.fromarray(attention).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.maximum(np.asarray(smooth), 0)
    return heat / max(float(heat.max()), np.finfo(np.float32).tiny)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draws heat over a pale grey photo; hotter places are more opaque.

    Args:
        image: uint8 `[H, W, 3]`.
        heat: `[H, W]` in 0..1.

    Returns:
        Float `[H, W, 3]` in 0..1.
    """
    grey = 0.25 + 0.7 * (image @ np.array([0.299, 0.587, 0.114]) / 255)
    cover = (0.85 * heat**0.8)[..., None]
    return np.clip((1 - cover) * grey[..., None] + cover * colormaps["inferno"](heat)[..., :3], 0, 1)


def draw_scale(page: Page, left: float, top: float) -> None:
    """Draws the colours from 0 to the peak of a map, over medium grey."""
    scale = np.broadcast_to(np.linspace(0, 1, 128, dtype=np.float32), (2, 128))
    page.write("0", left, top, color=QUIET)
    page.picture(overlay(np.full((2, 128, 3), 128, np.uint8), scale), left + 0.14, top - 0.005, 1.5, 0.11)
    page.write("peak of each map", left + 1.72, top, color=QUIET)
