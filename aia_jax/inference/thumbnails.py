"""Stores small copies of annotated photos in a file, for the HTML page of `aia annotate`. Later calls append to it.

    pictures.jsonl      {"image": ..., "webp": ..., "labels": [...], "shape": [h, w], "maps": ...}, a line per photo

`webp` and `maps` (uint8 `[K, h, w]`) are in Base64. `labels` has K names; K is 0 if the model has no attention.
"""

import base64
import contextlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aia_jax.utils.files import complete_lines

PICTURES = "pictures.jsonl"


class Thumbnail(NamedTuple):
    """A small copy of a photo and its attention maps, for the HTML page.

    Attributes:
        webp: the small copy of the photo, as a WebP file.
        labels: the K labels that have an attention map.
        maps: uint8 `[K, h, w]`, the attention map of each label. The peak of each map has the value 255.
    """

    webp: bytes
    labels: tuple[str, ...] = ()
    maps: np.ndarray = np.zeros((0, 0, 0), np.uint8)


class ThumbnailStore(contextlib.ExitStack):
    """Context manager for the file of thumbnails in `folder`. Keeps only the offset of each line in memory.

    Incomplete and damaged lines are ignored, as if their photos had no thumbnail yet.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self._file = self.enter_context((folder / PICTURES).open("a+b"))
        self._offsets: dict[str, int] = {}
        for offset, line in complete_lines(self._file):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._offsets[_parse(line)[0]] = offset

    def __contains__(self, name: str) -> bool:
        return name in self._offsets

    def get(self, name: str) -> Thumbnail | None:
        """Reads the thumbnail of a photo from the file. Returns None if the photo has no thumbnail."""
        if name not in self._offsets:
            return None
        self._file.seek(self._offsets[name])
        return _parse(self._file.readline())[1]

    def add(self, name: str, thumbnail: Thumbnail) -> None:
        """Appends the thumbnail of a photo, which replaces an earlier thumbnail with the same name."""
        line = {
            "image": name,
            "webp": base64.b64encode(thumbnail.webp).decode(),
            "labels": thumbnail.labels,
            "shape": thumbnail.maps.shape[1:],
            "maps": base64.b64encode(np.ascontiguousarray(thumbnail.maps)).decode(),
        }
        self._file.seek(0, 2)
        self._offsets[name] = self._file.tell()
        self._file.write((json.dumps(line) + "\n").encode())
        self._file.flush()


def _parse(line: bytes) -> tuple[str, Thumbnail]:
    photo = json.loads(line)
    maps = np.frombuffer(base64.b64decode(photo["maps"]), np.uint8)
    maps = maps.reshape(len(photo["labels"]), *photo["shape"])
    return photo["image"], Thumbnail(base64.b64decode(photo["webp"]), tuple(photo["labels"]), maps)
