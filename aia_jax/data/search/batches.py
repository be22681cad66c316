"""What image search is trained and measured on: images by maps and keywords, queries, and batches of both."""

import dataclasses

import numpy as np

from aia_jax.data.mapped_rows import MappedRows
from aia_jax.data.search.queries import Queries


@dataclasses.dataclass(frozen=True)
class SearchImages:
    """N images, and Q queries of them.

    Attributes:
        maps: `[N, h, w, F]`, memory-mapped.
        keywords: int32 `[N, K]`, the ids of each image's keywords, padded with 0.
        counts: int32 `[N]`, how many there are.
        queries: texts, and which images are right.
        photos: uint8 `[N, S, S, 3]`, or None where only maps are at hand.
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
        """The row-aligned arrays of images."""
        return {"maps": self.maps, "keywords": self.keywords, "counts": self.counts}


@dataclasses.dataclass(frozen=True)
class SearchSplit:
    """Images, and queries as the model takes them.

    Attributes:
        images: N of them.
        queries: Q texts, and which images are right.
        tokens, lengths: the queries' words, int32 `[Q, L]` and `[Q]`.
        trained: bool `[Q]`, which of the queries training sees.
    """

    images: SearchImages
    queries: Queries
    tokens: np.ndarray
    lengths: np.ndarray
    trained: np.ndarray

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The row-aligned arrays of queries."""
        return {"tokens": self.tokens, "lengths": self.lengths}


class ClickBatches:
    """Makes batches of pairs of a query and an image that is right for it.

    Row b of a batch is image b with query b. Wrong images for a query are drawn among the others of its batch.

    Args:
        split: where they are from.
        negatives: t, wrong images of each query, or as many as the batch has; 0: all of them.
        keyword_noise: share of an image's keywords that is left out, and of another image's that is added. An annotator
            knows the images that it was trained on too well: training would trust its keywords more than they deserve.
        seed: of the draws, which depend on it and on the batch's rows alone.
    """

    def __init__(self, split: SearchSplit, negatives: int, seed: int, keyword_noise: tuple[float, float] = (0.0, 0.0)):
        self._split, self._negatives, self._seed = split, negatives, seed
        self._left_out, self._added = keyword_noise
        chosen = np.flatnonzero(split.trained)
        queries, self._images = split.queries.relevant[chosen].nonzero()
        self._queries = chosen[queries]

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, columns: dict[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
        """`index`, the columns of images and of queries `[b, ...]`, and `negative` bool `[b, B]`, image by query."""
        index = columns["index"]
        images, queries = self._images[index], self._queries[index]
        rng = np.random.default_rng([self._seed, *index.tolist()])
        own = {name: rows[images[part]] for name, rows in self._split.images.columns.items()}
        if self._left_out or self._added:
            own |= self._noisy(rng, images, part)
        own |= {name: rows[queries[part]] for name, rows in self._split.columns.items()}
        negative = self._draw(rng, self._split.queries.relevant[queries][:, images].toarray() == 0)
        return {"index": index[part].astype(np.int32), **own, "negative": negative.T[part]}

    def names(self, index: np.ndarray) -> list[str]:
        """Pairs as texts, such as "red boat: image 12"."""
        texts = self._split.queries.texts
        return [f"{texts[self._queries[pair]]}: image {self._images[pair]}" for pair in index]

    def _noisy(self, rng: np.random.Generator, images: np.ndarray, part: slice) -> dict[str, np.ndarray]:
        """The images' keywords, some left out, and then some of the image's before them in the batch."""
        keywords, counts = self._split.images.keywords[images], self._split.images.counts[images]
        drawn = rng.random((2, *keywords.shape))
        there = np.arange(keywords.shape[1]) < counts[:, None]
        own, others = there & (drawn[0] >= self._left_out), np.roll(there & (drawn[1] < self._added), 1, axis=0)
        chosen = np.concatenate([own, others], axis=1)[part]
        both = np.concatenate([keywords, np.roll(keywords, 1, axis=0)], axis=1)[part]
        order = np.argsort(~chosen, axis=1, kind="stable")[:, : keywords.shape[1]]
        front = np.take_along_axis(np.where(chosen, both, 0), order, axis=1)
        return {"keywords": front, "counts": np.minimum(chosen.sum(axis=1), keywords.shape[1]).astype(np.int32)}

    def _draw(self, rng: np.random.Generator, wrong: np.ndarray) -> np.ndarray:
        """Of the `wrong` `[B, B]` images of each query at most t."""
        if not self._negatives or self._negatives >= len(wrong):
            return wrong
        keys = np.where(wrong, rng.random(wrong.shape), np.inf)
        last = np.partition(keys, self._negatives - 1, axis=1)[:, self._negatives - 1 : self._negatives]
        return wrong & (keys <= last)


def padded_keywords(chosen: list[np.ndarray], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of each image's first `most` keywords, int32 `[N, most]`, padded with 0, and their numbers `[N]`."""
    counts = np.array([min(len(own), most) for own in chosen], np.int32)
    keywords = np.zeros((len(chosen), most), np.int32)
    for row, own in zip(keywords, chosen, strict=True):
        row[: min(len(own), most)] = own[:most]
    return keywords, counts
