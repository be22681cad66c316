"""The features of the photos of a review, which stay on disk."""

from collections.abc import Sequence

import numpy as np


class PhotoFeatures:
    """Features of N photos, each `[h, w, F]`. Indexing reads only the indexed photos.

    Args:
        rows: for each photo, its features: a view of a memory-mapped file.
    """

    def __init__(self, rows: Sequence[np.ndarray] = ()):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | Sequence[int]) -> np.ndarray:
        """Returns the features of M photos, `[M, h, w, F]`."""
        return np.stack(self._rows[index] if isinstance(index, slice) else [self._rows[row] for row in index])
