"""Holds the outputs of a text encoder for each token of many texts, without padding."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class TokenOutputs:
    """Outputs of N texts, in one array of the T tokens of all different texts.

    Attributes:
        values: outputs of size D, float16 `[T, D]`, memory-mapped if there are many texts.
        starts: index of each text's first token in `values`, int64 `[N]`.
        lengths: number of tokens of each text, int32 `[N]`.
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, texts: np.ndarray) -> TokenOutputs:
        """Selects texts. Does not read their outputs."""
        return TokenOutputs(self.values, self.starts[texts], self.lengths[texts])

    def padded(self, texts: np.ndarray, length: int | None = None) -> np.ndarray:
        """Returns the outputs of n texts, float16 `[n, L, D]`, padded with 0.

        `length` is L, to which longer texts are cut; None: the length of the longest of these texts.
        """
        lengths = self.lengths[texts]
        positions = np.arange(lengths.max(initial=0) if length is None else length)
        mask = positions < lengths[:, None]
        padded = np.zeros((*mask.shape, self.values.shape[1]), self.values.dtype)
        padded[mask] = self.values[(self.starts[texts][:, None] + positions)[mask]]
        return padded
