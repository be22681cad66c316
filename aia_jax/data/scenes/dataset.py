"""A data set without files: generated pictures of coloured shapes, with labels and captions.

`(seed, index)` determines a scene. All lengths are in units of the side of the picture, so a scene looks the same at
any size. Labels and captions do not depend on the orientation of the picture, because training flips pictures both
left-right and up-down.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from aia_jax.data.scenes.painting import Object, paint

_RGB_AND_FREQUENCY = {
    "red": ((214, 30, 36), 28.9),
    "blue": ((30, 72, 226), 22.0),
    "yellow": ((250, 222, 36), 16.0),
    "green": ((26, 178, 70), 12.0),
    "white": ((246, 246, 242), 8.5),
    "purple": ((122, 40, 176), 6.0),
    "orange": ((248, 128, 16), 4.3),
    "pink": ((252, 132, 196), 2.4),
}
# Frequency of each word, in per cent of the objects (backgrounds: of the pictures). A few are frequent, many are rare.
# The rarest words are easy to see, so that a few dozen examples suffice to learn them.
SHAPES = {"circle": 32.0, "ring": 26.0, "star": 20.0, "hourglass": 14.0, "cross": 8.0}
COLORS = {color: frequency for color, (_, frequency) in _RGB_AND_FREQUENCY.items()}
TEXTURES = {"solid": 34.0, "striped": 28.0, "dotted": 20.0, "checkered": 18.0}
BACKGROUNDS = {"grass": 32.0, "sand": 24.0, "sea": 18.0, "brick": 13.0, "night": 8.0, "marble": 5.0}

LABELS: tuple[str, ...] = (*SHAPES, *COLORS, *(name for name in TEXTURES if name != "solid"), *BACKGROUNDS)

_COUNTS = {1: 45.0, 2: 40.0, 3: 15.0}
_DIAMETERS = (0.36, 0.52)
# The smallest diameter at which a shape's texture can be recognised at 96 pixels. Other shapes have no texture.
_TEXTURED_FROM = {"circle": 0.0, "hourglass": 0.38, "star": 0.44, "cross": 0.40}
_SMALL, _LARGE = 0.40, 0.47


@dataclass(frozen=True)
class Scene:
    """A picture: `image` uint8 `[size, size, 3]`, its labels in the order of `LABELS`, and five captions."""

    image: np.ndarray
    labels: tuple[str, ...]
    captions: tuple[str, ...]


def draw(seed: int, index: int, size: int) -> Scene:
    """Draws the scene of `(seed, index)` at `size` x `size` pixels."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, index))))
    background = _pick(rng, BACKGROUNDS)
    objects = _place_objects(rng)
    captions = _write_captions(rng, objects, background)
    words = {background}.union(*((item.shape, item.color, item.texture) for item in objects))
    labels = tuple(label for label in LABELS if label in words)
    return Scene(paint(rng, background, objects, size), labels, captions)


def _pick(rng: np.random.Generator, frequencies: dict[Any, float]) -> Any:
    cumulative = list(accumulate(frequencies.values()))
    return list(frequencies)[int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))]


def _place_objects(rng: np.random.Generator) -> list[Object]:
    """Places objects inside the frame with little overlap. Leaves out an object if there is no room for it."""
    objects: list[Object] = []
    for _ in range(_pick(rng, _COUNTS)):
        diameter = rng.uniform(*_DIAMETERS)
        margin = diameter / 2 + 0.02
        for center in rng.uniform(margin, 1 - margin, (24, 2)):
            distances = [np.hypot(*(center - other.center)) - other.diameter / 2 for other in objects]
            if min(distances, default=1.0) > 0.47 * diameter:
                objects.append(_make_object(rng, diameter, (float(center[0]), float(center[1]))))
                break
    return objects


def _make_object(rng: np.random.Generator, diameter: float, center: tuple[float, float]) -> Object:
    shape, color, texture = _pick(rng, SHAPES), _pick(rng, COLORS), _pick(rng, TEXTURES)
    if diameter < _TEXTURED_FROM.get(shape, 1.0):
        texture = "solid"
    rgb = np.array(_RGB_AND_FREQUENCY[color][0]) * rng.uniform(0.9, 1.05) + rng.uniform(-8, 8, 3)
    return Object(shape, color, texture, diameter, center, rng.uniform(-0.3, 0.3), rgb.astype(np.float32))


_PLACES = {
    "grass": ("on grass", "on the lawn", "in a meadow"),
    "sand": ("on sand", "on the beach", "on a sandy beach"),
    "sea": ("on the sea", "on the water", "among the waves"),
    "brick": ("on a brick wall", "on bricks", "in front of a brick wall"),
    "night": ("at night", "in the dark", "in a night sky"),
    "marble": ("on marble", "on a marble floor", "on a slab of marble"),
}
_NUMBERS = ("no", "one", "two", "three")
_OPENINGS = ("", "a picture of ", "a drawing of ", "here we see ", "this is an image of ")


def _write_captions(rng: np.random.Generator, objects: list[Object], background: str) -> tuple[str, ...]:
    """Writes five captions. They list all objects, count them, name the place first, compare sizes, and name colors."""
    opening, *places = rng.integers(0, (len(_OPENINGS), 3, 3, 3, 3, 3)).tolist()
    everywhere = [_PLACES[background][place] for place in places]
    colors = _and(list(dict.fromkeys(item.color for item in objects)))
    plural = len(objects) > 1
    return (
        f"{_OPENINGS[opening]}{_list(objects, 'texture', 'color', 'shape')} {everywhere[0]}",
        f"{_NUMBERS[len(objects)]} shape{'s' * plural} {everywhere[1]}, {_list(objects, 'color', 'shape')}",
        f"{everywhere[2]} one finds {_list(objects, 'size', 'texture', 'shape')}",
        f"{_compare_sizes(objects)} {everywhere[3]}",
        f"{everywhere[4]}, {colors + ' shapes' if plural else _count(colors + ' shape', 1)}",
    )


def _compare_sizes(objects: list[Object]) -> str:
    """Returns a phrase that names the largest object before the others, or a list if the sizes are similar."""
    first, *others = sorted(objects, key=lambda item: -item.diameter)
    if not others:
        return f"only {_list(objects, 'size', 'color', 'texture', 'shape')}"
    if first.diameter < 1.15 * others[0].diameter:
        return f"{_list(others, 'size', 'color', 'shape')} beside {_list([first], 'size', 'color', 'shape')}"
    others_in_words = _list(others, "color", "shape")
    return f"the largest shape is {_list([first], 'texture', 'color', 'shape')}, with {others_in_words} beside it"


def _list(objects: list[Object], *attributes: str) -> str:
    """Returns a phrase that lists the objects and counts equal objects, such as "a red star and two blue rings"."""
    words = [" ".join(filter(None, (_word(item, name) for name in attributes))) for item in objects]
    return _and([_count(phrase, number) for phrase, number in Counter(words).items()])


def _word(item: Object, attribute: str) -> str:
    """Returns the word for an attribute; "" for a solid texture or a medium size."""
    if attribute == "size":
        return "small" if item.diameter < _SMALL else "large" if item.diameter > _LARGE else ""
    word = getattr(item, attribute)
    return "" if word == "solid" else word


def _count(phrase: str, number: int) -> str:
    if number == 1:
        return f"an {phrase}" if phrase.startswith(("a", "e", "i", "o", "u", "hour")) else f"a {phrase}"
    return f"{_NUMBERS[number]} {phrase}" + ("es" if phrase.endswith("ss") else "s")


def _and(phrases: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
