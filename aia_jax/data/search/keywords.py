"""Keywords from an automatic image tagger: their words and the vocabulary.

Files and words are those of AMC (Chen et al., CVPR 2017; github kanchen-usc/AMC_ATT), whose programs are Python 2.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, write_json

_TAGGING = '{"tagging": {"keywords": ["a word or more", ...]}}'


def read_keywords(path: str | Path) -> list[str]:
    """Reads the keywords of a tagger's JSON, `{"tagging": {"keywords": [...]}}`.

    Raises:
        InputError: the file is absent or malformed.
    """
    document = read_json(path, _TAGGING)
    tagging = document.get("tagging") if isinstance(document, dict) else None
    if not isinstance(tagging, dict) or "keywords" not in tagging:
        raise InputError(f"{path} has no tagging.keywords; expected {_TAGGING}")
    return _strings(path, "tagging.keywords", tagging["keywords"])


def analyze(keywords: Iterable[str]) -> list[str]:
    """Splits keywords into words of two or more letters, in lower case, without English stop words. Keeps repeats.

    The result is that of scikit-learn's CountVectorizer(stop_words="english") for the keywords joined by spaces.
    """
    return _analyzer()(" ".join(keywords))


class KeywordVocabulary:
    """Words and their ids, which are their positions.

    Args:
        words: V different words.
        name: name for messages, such as the file.

    Raises:
        InputError: a word is repeated.
    """

    def __init__(self, words: Iterable[str], name: str = "the vocabulary of keywords"):
        self.words = tuple(words)
        self.name = name
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            twice = next(word for number, word in enumerate(self.words) if self._ids[word] != number)
            raise InputError(f"{name}: {twice!r} is repeated; every word must have one id")

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def fit(cls, documents: Iterable[list[str]], min_count: int = 6) -> "KeywordVocabulary":
        """Makes a vocabulary of the words in at least `min_count` documents, with the ids of CountVectorizer(min_df).

        Memory grows with the number of different words only.

        Args:
            documents: the words of each image, see `analyze`.

        Raises:
            InputError: no word is in so many documents.
        """
        counts = Counter(itertools.chain.from_iterable(map(set, documents)))
        words = sorted(word for word, count in counts.items() if count >= min_count)
        if not words:
            raise InputError(f"no word is in the keywords of {min_count} images; give more images or a lower min_count")
        return cls(words)

    @classmethod
    def load(cls, path: str | Path) -> "KeywordVocabulary":
        """Reads a file of `save`, `{"words": [...]}`.

        Raises:
            InputError: the file is absent or malformed, or a word is repeated.
        """
        expected = '{"words": [...]}, which `aia keywords` writes'
        document = read_json(path, expected)
        if not isinstance(document, dict) or not document.get("words"):
            raise InputError(f"{path} has no words; expected {expected}")
        return cls(_strings(path, "words", document["words"]), str(path))

    def save(self, path: str | Path) -> None:
        """Writes `{"words": [...]}`, atomically."""
        write_json(Path(path), {"words": self.words})

    def encode(self, words: Iterable[str]) -> np.ndarray:
        """The ids of the known words in order, with repeats: int32 `[K]`."""
        ids = (self._ids.get(word) for word in words)
        return np.array([number for number in ids if number is not None], np.int32)


@functools.cache
def _analyzer() -> Callable[[str], list[str]]:
    from sklearn.feature_extraction.text import CountVectorizer  # takes a second to import

    return CountVectorizer(stop_words="english").build_analyzer()


def _strings(path: str | Path, field: str, value: object) -> list[str]:
    if not isinstance(value, list):
        raise InputError(f"{path}: {field} must be a list of strings, found {value!r:.40}")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise InputError(f"{path}: {field}[{index}] must be a string, found {item!r:.40}")
    return value
