"""Finds the words that captions mention."""

import re
from collections.abc import Sequence

import numpy as np

from aia_jax.data.retrieval.photo_captions import CaptionedPhotos

# For some labels: other words that mean them, or a kind of them.
_MEANINGS = {
    "person": """people man men woman women boy girl guy lady kid child children baby toddler adult someone player rider
        biker cyclist skier snowboarder surfer climber hiker skateboarder""",
    "child": "children boy girl kid toddler",
    "dog": "puppy puppies",
    "grass": "grassy lawn",
    "snow": "snowy",
    "rock": "boulder",
    "mountain": "mountainside",
    "beach": "shore",
    "ocean": "sea",
    "forest": "woods",
    "path": "trail",
    "street": "road",
    "bicycle": "bike bmx",
    "motorcycle": "motorbike",
    "swimming pool": "pool",
}


def mentions(names: Sequence[str], split: CaptionedPhotos) -> np.ndarray:
    """Returns bool `[I, C]`: whether a caption of an image mentions a label.

    A caption mentions a label if it contains the label's name, its plural, or another word with its meaning.
    """
    found = np.zeros((len(split), len(names)), bool)
    captions = [caption.lower() for caption in split.captions]
    for label, name in enumerate(names):
        words = [name.lower(), *_MEANINGS.get(name, "").split()]
        pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})(s|es)?\b")
        found[[owner for owner, text in zip(split.owners, captions, strict=True) if pattern.search(text)], label] = True
    return found
