"""Text queries, relevant images, and batches of both for training and evaluating image search."""

import dataclasses
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import sparse

from aia_jax.data.mapped_rows import MappedRows
from aia_jax.data.vocabulary import SPECIAL_WORDS, Vocabulary, pad_ids, tokenize
from aia_jax.utils.errors import InputError


@dataclasses.dataclass(frozen=True)
class Queries:
    """Q queries for N images.

    Attributes:
        texts: Q texts.
        relevant: `[Q, N]`, above 0 if the image is relevant to the query. Each query has at least one relevant image.
    """

    texts: tuple[str, ...]
    relevant: sparse.csr_matrix

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, chosen: np.ndarray) -> "Queries":
        """Returns the queries with the indices `chosen`, for all N images."""
        return Queries(tuple(self.texts[query] for query in chosen), self.relevant[chosen])


def label_queries(targets: np.ndarray, labels: Sequence[str], most_words: int) -> Queries:
    """Makes a query from each set of one to `most_words` labels that at least one image has.

    An image is relevant to a query if it has all labels of the query. The queries are sorted by their number of labels.
    The labels of a query have the order of `labels`.

    Args:
        targets: `[N, C]`, multi-hot, for N images and C labels.
        labels: C label names.

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
    """Makes `Queries`. `found` maps the text of each query to the indices of its relevant images."""
    rows = [sorted(images) for images in found.values()]
    starts = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter(itertools.chain.from_iterable(rows), np.int64, starts[-1])
    relevant = sparse.csr_matrix((np.ones(starts[-1], np.int8), columns, starts), (len(rows), num_images))
    return Queries(tuple(found), relevant)


def held_out(texts: Sequence[str], fraction: float) -> np.ndarray:
    """Selects queries to exclude from training, bool `[Q]`: by a hash, about `fraction` of those with several words."""
    digests = (hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in texts)
    hashes = (int.from_bytes(digest[:6], "big") / 2**48 for digest in digests)
    return np.array([" " in text and value < fraction for text, value in zip(texts, hashes, strict=True)], bool)


def encode_queries(texts: Sequence[str], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of the known words of Q queries, int32 `[Q, L]`, padded with 0, and the number of ids, `[Q]`.

    Raises:
        InputError: a query has no known word.
    """
    rows = [known_ids(text, vocabulary) for text in texts]
    if unknown := [text for text, row in zip(texts, rows, strict=True) if not row]:
        known = [word for word in vocabulary.ids if word not in SPECIAL_WORDS]
        listed = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        words = f"{len(known):,} words, such as {', '.join(known[:20])}"
        raise InputError(f"no word of {listed} is known to {vocabulary.name} of {words}")
    return pad_ids(rows)


def known_ids(text: str, vocabulary: Vocabulary) -> list[int]:
    """Returns the ids of the words of a query that are in the vocabulary, in order."""
    special = {vocabulary.ids[word] for word in SPECIAL_WORDS}
    return [number for number in vocabulary.encode(text) if number not in special]


def unknown_words(text: str, vocabulary: Vocabulary) -> list[str]:
    """Returns the words of a query that are not in the vocabulary. Leaves out punctuation marks."""
    return [word for word in tokenize(text) if word not in vocabulary and any(map(str.isalnum, word))]


@dataclasses.dataclass(frozen=True)
class SearchImages:
    """N images and Q queries for them.

    Attributes:
        maps: feature maps `[N, h, w, F]`, memory-mapped.
        keywords: int32 `[N, K]`, keyword ids of each image, padded with 0.
        counts: int32 `[N]`, number of keywords of each image.
        queries: Q texts and the relevant images.
        photos: uint8 `[N, S, S, 3]`, or None if there are only feature maps.
    """

    maps: MappedRows
    keywords: np.ndarray
    counts: np.ndarray
    queries: Queries
    photos: MappedRows | None = None

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def columns(self) -> dict[str, MappedRows | np.ndarray]:
        """The arrays with one row per image."""
        return {"maps": self.maps, "keywords": self.keywords, "counts": self.counts}


@dataclasses.dataclass(frozen=True)
class SearchSplit:
    """A split of images, with queries encoded for the model.

    Attributes:
        images: the N images.
        queries: Q texts and the relevant images.
        tokens: int32 `[Q, L]`, word ids of each query, padded with 0.
        lengths: int32 `[Q]`, number of word ids of each query.
        trained: bool `[Q]`, True for queries to train on.
    """

    images: SearchImages
    queries: Queries
    tokens: np.ndarray
    lengths: np.ndarray
    trained: np.ndarray

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The arrays with one row per query."""
        return {"tokens": self.tokens, "lengths": self.lengths}


class ClickBatches:
    """Makes batches of B pairs. A pair is a query and a relevant image. A row of a batch is a pair.

    The negative images of a query are sampled from the other images of the batch.

    Args:
        split: source of the pairs.
        negatives: maximum number of negative images for each query; 0: all irrelevant images of the batch.
        keyword_noise: fraction of an image's keywords to drop, and fraction of another image's keywords to add. The
            annotator predicts keywords of its training images too well. Without noise, the model would rely on them.
        seed: seed of the random choices, which depend only on the seed and the rows of the batch.
    """

    def __init__(self, split: SearchSplit, negatives: int, seed: int, keyword_noise: tuple[float, float] = (0.0, 0.0)):
        self._split, self._negatives, self._seed = split, negatives, seed
        self._dropped, self._added = keyword_noise
        chosen = np.flatnonzero(split.trained)
        queries, self._images = split.queries.relevant[chosen].nonzero()
        self._queries = chosen[queries]

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, columns: dict[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
        """Returns the columns of b pairs; see `MakeBatch`. `negative[i, j]`: image i is a negative image of query j."""
        index = columns["index"]
        images, queries = self._images[index], self._queries[index]
        rng = np.random.default_rng([self._seed, *index.tolist()])
        own = {name: rows[images[part]] for name, rows in self._split.images.columns.items()}
        if self._dropped or self._added:
            own |= self._noisy_keywords(rng, images, part)
        own |= {name: rows[queries[part]] for name, rows in self._split.columns.items()}
        negative = self._sample(rng, self._split.queries.relevant[queries][:, images].toarray() == 0)
        return {"index": index[part].astype(np.int32), **own, "negative": negative.T[part]}

    def names(self, index: np.ndarray) -> list[str]:
        """Returns descriptions of pairs, such as "red boat: image 12"."""
        texts = self._split.queries.texts
        return [f"{texts[self._queries[pair]]}: image {self._images[pair]}" for pair in index]

    def _noisy_keywords(self, rng: np.random.Generator, images: np.ndarray, part: slice) -> dict[str, np.ndarray]:
        """Drops some keywords of each image, and appends some keywords of the previous image of the batch."""
        keywords, counts = self._split.images.keywords[images], self._split.images.counts[images]
        random = rng.random((2, *keywords.shape))
        valid = np.arange(keywords.shape[1]) < counts[:, None]
        own, others = valid & (random[0] >= self._dropped), np.roll(valid & (random[1] < self._added), 1, axis=0)
        chosen = np.concatenate([own, others], axis=1)[part]
        both = np.concatenate([keywords, np.roll(keywords, 1, axis=0)], axis=1)[part]
        order = np.argsort(~chosen, axis=1, kind="stable")[:, : keywords.shape[1]]
        front = np.take_along_axis(np.where(chosen, both, 0), order, axis=1)
        return {"keywords": front, "counts": np.minimum(chosen.sum(axis=1), keywords.shape[1]).astype(np.int32)}

    def _sample(self, rng: np.random.Generator, irrelevant: np.ndarray) -> np.ndarray:
        """Samples at most `negatives` of the `irrelevant` images of each query: bool `[B, B]`, queries by images."""
        if not self._negatives or self._negatives >= len(irrelevant):
            return irrelevant
        keys = np.where(irrelevant, rng.random(irrelevant.shape), np.inf)
        last = np.partition(keys, self._negatives - 1, axis=1)[:, self._negatives - 1 : self._negatives]
        return irrelevant & (keys <= last)
