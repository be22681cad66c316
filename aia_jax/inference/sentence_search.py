"""Searches photos by words or sentences with a dual encoder.

The score of a photo is the cosine of the vectors of photo and query, plus half of the agreement of the query with the
photo's ImageNet classes. The agreement is 0 for most sentences. It finds things that the captions of the training data
do not mention.
"""

import re
from collections.abc import Sequence

import numpy as np

from aia_jax.inference.searcher import Part, SearchResult
from aia_jax.inference.stored_texts import class_embeddings
from aia_jax.inference.trained_dual_encoder import TrainedDualEncoder
from aia_jax.inference.vector_search import exact_search, fast_search
from aia_jax.models.conse import class_values
from aia_jax.utils.errors import InputError

_CLASSES = 32  # the most probable classes of a photo, which an index keeps
_AGREEMENT = 0.5  # weight of the agreement; chosen on the validation split of Flickr8k


class SentenceSearch:
    """Finds the photos with the highest scores for a query.

    Args:
        encoder: the model.

    Attributes:
        image_size: side of the photos in pixels.
        batch_size: largest number of photos in a batch.
        digest: text that identifies the model.
        arrays: names of the arrays that `compute` returns.

    Raises InputError if the text encoder is not installed.
    """

    def __init__(self, encoder: TrainedDualEncoder):
        self._encoder, self._texts = encoder, encoder.texts
        self.image_size, self.batch_size = encoder.image_size, encoder.batch_size
        self.digest = f"{encoder.digest}, vectors and {_CLASSES} classes"
        self._classes = class_embeddings(encoder) if encoder.has_classes else None
        self.arrays = ("vectors", "classes", "probabilities") if encoder.has_classes else ("vectors",)

    def check(self, query: str) -> str:
        """Returns a note about a query, or "". Raises InputError if the query has no known word."""
        if self._texts.tokenizer.check_words([query], "query"):
            return "the query is too long; only its start is used"
        return "a word with a minus is not excluded" if re.search(r"(?<!\S)-\w", query) else ""

    def compute(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Computes the arrays of b photos, uint8 `[b, S, S, 3]`, for a `PhotoIndex`.

        Returns:
            `vectors` float16 `[b, D]` and, if the model has ImageNet's classes, the most probable `classes` uint16
            `[b, 32]` and their `probabilities` float16 `[b, 32]`.
        """
        outputs = {name: np.asarray(rows)[: len(images)] for name, rows in self._encoder.encode_images(images).items()}
        rows = {"vectors": outputs["vectors"].astype(np.float16)}
        if self._classes is not None:
            best = np.argsort(-outputs["log_classes"], axis=1)[:, :_CLASSES]
            chosen = np.exp(np.take_along_axis(outputs["log_classes"], best, axis=1))
            rows |= {"classes": best.astype(np.uint16), "probabilities": chosen.astype(np.float16)}
        return rows

    def search(
        self, query: str, parts: Sequence[Part], *, count: int, shortlist: int = 0, fast: bool = False
    ) -> SearchResult:
        """Finds the `count` best photos for a query. `parts` are the photos; see `PhotoIndex.parts`.

        An exact search reads the arrays and scores all photos, so `shortlist` is not used. For `fast`, see
        `fast_search`.

        Raises InputError if the query has no known word, the index is empty, or `fast` needs a package.
        """
        self.check(query)
        if not parts:
            raise InputError("the index holds no usable photo")
        embedded = self._texts.encode([query])
        vector = self._encoder.encode_texts([query], embedded)[0]
        values = None
        if self._classes is not None:
            values = _AGREEMENT * np.asarray(class_values(self._classes, embedded["sentence"]))[:, 0]
        values = values if values is not None and values.any() else None
        return (fast_search if fast else exact_search)(parts, vector, values, count)
