"""Pixels of pictures in `aia_jax.report`."""

from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

GREEN = (10, 200, 30)  # photos of this colour are easy to find


def pixels(path: Path) -> np.ndarray:
    """uint8 `[H, W, 3]` of a PNG."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def ink(image: np.ndarray, color: str | tuple[int, int, int]) -> np.ndarray:
    """Whether each pixel has exactly this colour: bool `[H, W]`."""
    return (image == (np.round(np.array(to_rgb(color)) * 255) if isinstance(color, str) else color)).all(-1)


def count_runs(flags: np.ndarray) -> int:
    """The number of consecutive runs of True."""
    return int((np.diff(flags.astype(int), prepend=0) == 1).sum())
