"""Text queries and their relevant images."""

import dataclasses
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import sparse

from aia_jax.data.vocabulary import SPECIAL_WORDS, Vocabulary, pad_ids, tokenize
from aia_jax.utils.errors import InputError


@dataclasses.dataclass(frozen=True)
class Queries:
    """Q queries for N images.

    Attributes:
        texts: Q texts.
        relevant: `[Q, N]`, above 0 for relevant images; each query has at least one.
    """

    texts: tuple[str, ...]
    relevant: sparse.csr_matrix

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, chosen: np.ndarray) -> "Queries":
        """Selects queries, for the same images."""
        return Queries(tuple(self.texts[query] for query in chosen), self.relevant[chosen])


def label_queries(targets: np.ndarray, labels: Sequence[str], most_words: int) -> Queries:
    """Makes a query of each set of one to `most_words` labels that some image has. All images with them are relevant.

    Args:
        targets: `[N, C]`, multi-hot.
        labels: C names.

    Returns:
        Queries in order of their number of labels. The labels of a query have the order of the vocabulary.

    Raises:
        InputError: no image has a label.
    """
    images: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for image, row in enumerate(targets):
        present = np.flatnonzero(row).tolist()
        for count in range(1, most_words + 1):
            for chosen in itertools.combinations(present, count):
                images[chosen].append(image)
    if not images:
        raise InputError("no image has a label, so there is nothing to search for")
    found: dict[str, set[int]] = defaultdict(set)
    for chosen in sorted(images, key=lambda chosen: (len(chosen), chosen)):
        found[" ".join(labels[label] for label in chosen)].update(images[chosen])
    return make_queries(found, len(targets))


def make_queries(found: Mapping[str, Iterable[int]], num_images: int) -> Queries:
    """Makes queries from the relevant images of each text."""
    rows = [sorted(images) for images in found.values()]
    starts = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter(itertools.chain.from_iterable(rows), np.int64, starts[-1])
    relevant = sparse.csr_matrix((np.ones(starts[-1], np.int8), columns, starts), (len(rows), num_images))
    return Queries(tuple(found), relevant)


def held_out(texts: Sequence[str], fraction: float) -> np.ndarray:
    """Selects queries to exclude from training: a fraction of those with several words, by a hash. bool `[Q]`."""
    return np.array([" " in text and _hash(text) < fraction for text in texts], bool)


def encode_queries(texts: Sequence[str], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Encodes queries as ids of their known words, int32 `[Q, L]` padded with 0, and their lengths `[Q]`.

    Raises:
        InputError: a query has no known word.
    """
    rows = [_known_ids(text, vocabulary) for text in texts]
    if unknown := [text for text, row in zip(texts, rows, strict=True) if not row]:
        listed = ", ".join(repr(text) for text in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"no word of {listed} is known to {vocabulary.name} of {len(vocabulary) - len(SPECIAL_WORDS):,} words"
        )
    return pad_ids(rows)


def is_known(text: str, vocabulary: Vocabulary) -> bool:
    """Whether a word of a query is in the vocabulary."""
    return bool(_known_ids(text, vocabulary))


def unknown_words(text: str, vocabulary: Vocabulary) -> list[str]:
    """The words of a query that are not in the vocabulary, without punctuation marks."""
    return [word for word in tokenize(text) if word not in vocabulary and any(map(str.isalnum, word))]


def _known_ids(text: str, vocabulary: Vocabulary) -> list[int]:
    special = {vocabulary.ids[word] for word in SPECIAL_WORDS}
    return [number for number in vocabulary.encode(text) if number not in special]


def _hash(text: str) -> float:
    """A number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
