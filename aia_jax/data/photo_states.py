"""Sizes and times of change of photos, by which an index finds the photos that have changed."""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

Entry = tuple[str, int, int]  # name of a photo, size in bytes, time of the last change in nanoseconds


class PhotoStates:
    """The photos of a folder, with the sizes and the times of change of their files.

    The numbers are in arrays, because the tuples of 10 million photos would need gigabytes.

    Attributes:
        names: the names of the N photos, relative to the folder.
        places: for each name, its index in `names`.
        states: int64 `[N + 1, 2]`, size in bytes and time of the last change in nanoseconds; -1 if there is no such
            file, and in the last row, which stands for all other names.
        is_missing: bool `[N + 1]`, whether there is no such file.
        done: bool `[N + 1]`, whether the index has a current row of the photo, or there is no such file.
    """

    def __init__(self, folder: Path, names: Iterable[str]):
        self.names = list(dict.fromkeys(names))
        self.places = dict(zip(self.names, range(len(self.names)), strict=True))
        states = itertools.chain((_state(os.path.join(folder, name)) for name in self.names), [(-1, -1)])
        self.states = np.fromiter(states, np.dtype((np.int64, 2)), len(self.names) + 1)
        self.is_missing = self.states[:, 0] < 0
        self.done = self.is_missing.copy()

    def entry(self, name: str) -> Entry:
        """Returns the entry of a photo."""
        size, time = self.states[self.places[name]].tolist()
        return name, size, time


def _state(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
