"""Hits of an image search for tests of pictures and pages."""

from typing import Any

import numpy as np

from aia_jax.report.search import SearchHit
from tests.helpers.pictures import GREEN


def hit(shape: tuple[int, int] = (30, 40), **changes: Any) -> SearchHit:
    """A hit with a green photo of this height and width."""
    fields = {
        "image": np.full((*shape, 3), GREEN, np.uint8),
        "name": "a photo.jpg",
        "score": 0.5,
        "correct": None,
        "attention": np.random.default_rng(0).random((3, 3)),
        "weights": (0.7, 0.3),
        "keywords": (("dog", 0.6), ("beach", 0.4)),
    }
    return SearchHit(**fields | changes)
