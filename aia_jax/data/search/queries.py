"""Queries in words, and which images are right for them."""

import dataclasses
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import sparse

from aia_jax.data.vocabulary import SPECIAL_WORDS, Vocabulary, tokenize
from aia_jax.utils.errors import InputError


@dataclasses.dataclass(frozen=True)
class Queries:
    """Q queries on N images.

    Attributes:
        texts: Q of them.
        relevant: `[Q, N]`, above 0 for the right images, of which every query has one.
    """

    texts: tuple[str, ...]
    relevant: sparse.csr_matrix

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, chosen: np.ndarray) -> "Queries":
        """These queries, on the same images."""
        return Queries(tuple(self.texts[query] for query in chosen), self.relevant[chosen])


def label_queries(targets: np.ndarray, labels: Sequence[str], most_words: int) -> Queries:
    """Every set of one to `most_words` labels that some image carries whole; right are all images that do.

    Args:
        targets: `[N, C]`, multi-hot.
        labels: C names.

    Returns:
        The labels of a query stand in the order of the vocabulary; short queries come first.

    Raises:
        InputError: no image carries a label.
    """
    images: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for image, row in enumerate(targets):
        present = np.flatnonzero(row).tolist()
        for count in range(1, most_words + 1):
            for chosen in itertools.combinations(present, count):
                images[chosen].append(image)
    if not images:
        raise InputError("no image carries a label, so that there is nothing to search for")
    found: dict[str, set[int]] = defaultdict(set)
    for chosen in sorted(images, key=lambda chosen: (len(chosen), chosen)):
        found[" ".join(labels[label] for label in chosen)].update(images[chosen])
    return make_queries(found, len(targets))


def make_queries(found: Mapping[str, Iterable[int]], num_images: int) -> Queries:
    """Queries on so many images, each with the rows of those that are right for it."""
    rows = [sorted(images) for images in found.values()]
    starts = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter(itertools.chain.from_iterable(rows), np.int64, starts[-1])
    relevant = sparse.csr_matrix((np.ones(starts[-1], np.int8), columns, starts), (len(rows), num_images))
    return Queries(tuple(found), relevant)


def held_out(texts: Sequence[str], fraction: float) -> np.ndarray:
    """Which queries of several words training is not to see, bool `[Q]`: a share of them, by their text alone."""
    return np.array([" " in text and _share(text) < fraction for text in texts], bool)


def encode_queries(texts: Sequence[str], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Queries as ids of their known words, int32 `[Q, L]` padded with 0, and their numbers `[Q]`.

    Raises:
        InputError: of some query no word is known.
    """
    rows = [_known(text, vocabulary) for text in texts]
    if unknown := [text for text, row in zip(texts, rows, strict=True) if not row]:
        listed = ", ".join(repr(text) for text in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"no word of {listed} is known to {vocabulary.name} of {len(vocabulary) - len(SPECIAL_WORDS):,} words"
        )
    lengths = np.fromiter(map(len, rows), np.int32, len(rows))
    tokens = np.zeros((len(rows), lengths.max(initial=1)), np.int32)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return tokens, lengths


def is_known(text: str, vocabulary: Vocabulary) -> bool:
    """Whether a word of a query is in the vocabulary."""
    return bool(_known(text, vocabulary))


def unknown_words(text: str, vocabulary: Vocabulary) -> list[str]:
    """The words of a query that are not in the vocabulary, marks aside."""
    return [word for word in tokenize(text) if word not in vocabulary and any(map(str.isalnum, word))]


def _known(text: str, vocabulary: Vocabulary) -> list[int]:
    special = {vocabulary.ids[word] for word in SPECIAL_WORDS}
    return [number for number in vocabulary.encode(text) if number not in special]


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
