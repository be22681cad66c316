"""Searches photos by sentences with a dual encoder."""

from collections.abc import Sequence

import numpy as np

from aia_jax.inference.searcher import Part, SearchResult
from aia_jax.inference.trained_dual_encoder import TrainedDualEncoder
from aia_jax.utils.errors import InputError


class SentenceSearch:
    """Finds the photos whose vectors have the largest dot products with the vector of a query.

    Args:
        encoder: the model.

    Attributes:
        image_size: side of the photos in pixels.
        batch_size: largest number of photos in a batch.
        digest: text that identifies the model.
    """

    def __init__(self, encoder: TrainedDualEncoder):
        self._encoder = encoder
        self.image_size, self.batch_size, self.digest = encoder.image_size, encoder.batch_size, encoder.digest
        self._parts: Sequence[Part] = ()
        self._vectors = np.zeros((0, 0), np.float32)

    def check(self, query: str) -> str:
        """Returns a note about a query, or "". Raises InputError if the query has no known word."""
        too_long = self._encoder.texts.tokenizer.check_words([query], "query")
        return "the query is too long; only its start is used" if too_long else ""

    def compute(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Computes the arrays of b photos, uint8 `[b, S, S, 3]`, for a `PhotoIndex`: `vectors` float16 `[b, D]`."""
        vectors = np.asarray(self._encoder.encode_images(images)["vectors"])[: len(images)]
        return {"vectors": vectors.astype(np.float16)}

    def search(self, query: str, parts: Sequence[Part], *, count: int, shortlist: int = 0) -> SearchResult:
        """Finds the `count` best photos for a query. `parts` are the photos; see `PhotoIndex.parts`.

        The first search reads the vectors of all photos into memory, in float32. Every search scores all photos, so
        `shortlist` is not used.

        Raises InputError if the query has no known word, or the index is empty.
        """
        self.check(query)
        if parts is not self._parts:
            rows = [arrays["vectors"][own].astype(np.float32) for arrays, own in parts]
            self._parts, self._vectors = parts, np.concatenate(rows) if rows else self._vectors
        if not len(self._vectors):
            raise InputError("the index holds no usable photo")
        scores = self._vectors @ self._encoder.encode_texts([query])[0]
        count = min(count, len(scores))
        best = np.argpartition(-scores, count - 1)[:count]
        best = best[np.argsort(-scores[best], kind="stable")]
        return SearchResult(rows=best, scores=scores[best])
