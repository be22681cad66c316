"""Paints scenes: outlines, textures and backgrounds, in units of the side of the picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

_SUPERSAMPLING = 4
_INK = 16.0
_DARKNESS = 0.7
_RIM = 1.5


@dataclass(frozen=True)
class Object:
    """A shape in a scene. Lengths are in units of the side of the picture, `angle` in radians."""

    shape: str
    color: str
    texture: str
    diameter: float
    center: tuple[float, float]
    angle: float
    rgb: np.ndarray


def paint(rng: np.random.Generator, background: str, objects: Sequence[Object], size: int) -> np.ndarray:
    """Paints the background, then the objects, then light and grain over both: uint8 `[size, size, 3]`."""
    canvas = _BACKGROUNDS[background](rng, size)
    for item in objects:
        _paint_object(canvas, item)
    return _light(rng, canvas)


def _polar(radii: Sequence[float]) -> np.ndarray:
    """Returns corners `[N, 2]` at evenly spaced angles. The first corner is at the top."""
    angles = -np.pi / 2 + np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.asarray(radii)[:, None]


# Outlines `[N, 2]` within about the unit circle. A second outline is a hole.
_CROSS = np.array([(1, 3), (1, 1), (3, 1), (3, -1), (1, -1), (1, -3)]) / 3.1
_HOURGLASS = np.array([(-0.72, -0.8), (0.72, -0.8), (0.14, 0), (0.72, 0.8), (-0.72, 0.8), (-0.14, 0)])
_OUTLINES = {
    "circle": [_polar([0.88] * 48)],
    "star": [_polar([1.0, 0.42] * 5)],
    "hourglass": [_HOURGLASS],
    "ring": [_polar([0.95] * 48), _polar([0.52] * 48)],
    "cross": [np.concatenate([_CROSS, -_CROSS])],
}


def _paint_object(canvas: np.ndarray, item: Object) -> None:
    """Blends an object into `canvas` `[S, S, 3]`: a dark outline, a plain rim, and the texture inside the rim."""
    size = canvas.shape[0]
    left, top = (max(int((axis - item.diameter / 2) * size) - 2, 0) for axis in item.center)
    patch = canvas[top:, left:][: (side := int(item.diameter * size) + 6), :side]
    columns, rows = left + np.arange(patch.shape[1]) + 0.5, top + np.arange(patch.shape[0])[:, None] + 0.5
    x, y = columns / size - item.center[0], rows / size - item.center[1]
    cosine, sine = np.cos(item.angle), np.sin(item.angle)
    rotation = np.array([(cosine, sine), (-sine, cosine)]) * (item.diameter / 2)
    outlines = [
        (outline @ rotation + item.center) * (size * _SUPERSAMPLING) - np.array((left, top)) * _SUPERSAMPLING
        for outline in _OUTLINES[item.shape]
    ]
    pen = max(1, round(0.02 * size * _SUPERSAMPLING))
    patch += _coverage(outlines, patch.shape, 255, pen) * (_INK - patch)
    patch += _coverage(outlines, patch.shape, 0, pen) * (item.rgb - patch)
    if item.texture != "solid":
        dark = _dark(item.texture, x * cosine + y * sine, y * cosine - x * sine, size)[..., None]
        patch *= 1 - _DARKNESS * dark * _coverage(outlines, patch.shape, 0, round(_RIM * pen))


def _coverage(outlines: list[np.ndarray], shape: tuple[int, ...], line: int, width: int) -> np.ndarray:
    """Returns the fraction of each pixel inside outlines, 0..1 `[H, W, 1]`. Lines count as inside if `line` is 255."""
    image = Image.new("L", (shape[1] * _SUPERSAMPLING, shape[0] * _SUPERSAMPLING))
    pen = ImageDraw.Draw(image)
    for outline, fill in zip(outlines, (255, 0), strict=False):
        pen.polygon(outline.ravel().tolist(), fill=fill)
    for outline in outlines:
        pen.line([*outline.ravel().tolist(), *outline[:2].ravel().tolist()], fill=line, width=width)
    return np.asarray(image.reduce(_SUPERSAMPLING), np.float32)[..., None] / 255


def _dark(texture: str, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Returns the darkness of a texture, 0..1 `[H, W]`. `x` and `y` are coordinates along the axes of the object."""
    if texture == "striped":
        dark = np.sin(2 * np.pi / 0.086 * x) * (0.086 * size / 6)
    elif texture == "checkered":
        dark = np.sin(2 * np.pi / 0.16 * x) * np.sin(2 * np.pi / 0.16 * y) * (0.16 * size / 6)
    else:
        dark = (0.27 - np.hypot((x / 0.075) % 1 - 0.5, (y / 0.075) % 1 - 0.5)) * (0.075 * size)
    return np.clip(0.5 + dark, 0, 1).astype(np.float32)


def _noise(rng: np.random.Generator, size: int, rows: int, columns: int) -> np.ndarray:
    """Samples smooth noise `[size, size, 1]` with a variance of about 1. It looks the same at every `size`."""
    lattice = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    return np.asarray(lattice.resize((size, size), Image.Resampling.BICUBIC))[..., None]


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[None, :, None], axis[:, None, None]


def _mix(first: np.typing.ArrayLike, second: np.typing.ArrayLike, weight: np.ndarray) -> np.ndarray:
    first, second = np.array(first, np.float32), np.array(second, np.float32)
    return first + (second - first) * weight


def _grass(rng: np.random.Generator, size: int) -> np.ndarray:
    blades = _noise(rng, size, 14, 56)
    return _mix((84, 112, 52), (116, 140, 72), 0.8 * blades + 0.3 * _noise(rng, size, 5, 5))


def _sand(rng: np.random.Generator, size: int) -> np.ndarray:
    return _mix((204, 182, 138), (172, 148, 106), 0.45 * _noise(rng, size, 72, 72) + 0.4 * _noise(rng, size, 6, 6))


def _sea(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _grid(size)
    swell = 6 * np.pi * (rng.uniform(0, 1) + 3 * y + 0.12 * np.sin(10 * x + rng.uniform(0, 6)))
    waves = np.sin(swell + 0.9 * _noise(rng, size, 6, 6))
    return _mix((58, 118, 132), (112, 166, 172), 0.5 + 0.5 * waves + 0.12 * _noise(rng, size, 40, 20))


def _brick(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _grid(size)
    height, width, joint = 0.115, 0.24, 0.009
    row = (y + rng.uniform(0, height)) / height
    column = (x + rng.uniform(0, width)) / width + 0.5 * (np.floor(row) % 2)
    from_joint = np.minimum((0.5 - np.abs(row % 1 - 0.5)) * height, (0.5 - np.abs(column % 1 - 0.5)) * width)
    mortar = np.clip(0.5 + (joint - from_joint) * size, 0, 1)
    clay = _mix((126, 78, 62), (150, 98, 78), 0.6 * _noise(rng, size, 9, 5) + 0.3 * _noise(rng, size, 60, 60))
    return _mix(clay, (190, 182, 172), mortar)


def _night(rng: np.random.Generator, size: int) -> np.ndarray:
    sparkle = np.clip(_noise(rng, size, 40, 40) - 1.9, 0, 1)
    return _mix((30, 34, 74), (52, 54, 104), 0.5 * _noise(rng, size, 4, 4)) + 170 * sparkle


def _marble(rng: np.random.Generator, size: int) -> np.ndarray:
    veins = np.exp(-18 * np.abs(_noise(rng, size, 6, 6) + 0.25 * _noise(rng, size, 20, 20)))
    return _mix((158, 160, 164), (84, 86, 92), veins + 0.12 * _noise(rng, size, 8, 8))


_BACKGROUNDS = {"grass": _grass, "sand": _sand, "sea": _sea, "brick": _brick, "night": _night, "marble": _marble}


def _light(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Adds a gradient of light and grain: uint8 `[S, S, 3]`."""
    size = canvas.shape[0]
    x, y = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    gradient = 1 + 0.26 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    lit = canvas * (gradient * rng.uniform(0.92, 1.05)).astype(np.float32) + 4 * _noise(rng, size, 96, 96)
    return np.clip(lit + 0.5, 0, 255).astype(np.uint8)
