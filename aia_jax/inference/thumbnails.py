"""Pictures of annotated photos on disk, for a page that shows them: an append-only file that a later call continues.

    pictures.jsonl      {"image": ..., "webp": ..., "labels": [...], "shape": [h, w], "maps": ...}, a photo a line

`webp` and `maps`, uint8 `[K, h, w]`, are base64; without attention `labels` is empty.
"""

import base64
import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np

PICTURES = "pictures.jsonl"


@dataclasses.dataclass(frozen=True, eq=False)
class Thumbnail:
    """How a page shows a photo.

    Attributes:
        webp: a small copy of the photo, as a WebP file.
        labels: K names of labels that have a map.
        maps: uint8 `[K, h, w]`, where each of them looks, 255 at the map's peak.
    """

    webp: bytes
    labels: tuple[str, ...] = ()
    maps: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))


class ThumbnailStore:
    """The file of pictures in `folder`; a context. Holds the place of each line, no picture.

    A line that was torn or damaged does not count: its photo has no picture yet.
    """

    def __init__(self, folder: Path):
        self._file = (folder / PICTURES).open("a+b")
        self._places: dict[str, int] = {}
        end = 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            with contextlib.suppress(ValueError, KeyError, TypeError):
                name, _ = _parsed(line)
                self._places[name] = end
            end += len(line)
        self._file.truncate(end)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def get(self, name: str) -> Thumbnail | None:
        """A photo's picture, read from the file; None: there is none."""
        if name not in self._places:
            return None
        self._file.seek(self._places[name])
        return _parsed(self._file.readline())[1]

    def add(self, name: str, picture: Thumbnail) -> None:
        """Appends a photo's picture; it replaces an earlier one of this name."""
        line = {
            "image": name,
            "webp": base64.b64encode(picture.webp).decode(),
            "labels": picture.labels,
            "shape": picture.maps.shape[1:],
            "maps": base64.b64encode(np.ascontiguousarray(picture.maps)).decode(),
        }
        self._file.seek(0, 2)
        self._places[name] = self._file.tell()
        self._file.write((json.dumps(line) + "\n").encode())
        self._file.flush()

    def __enter__(self) -> "ThumbnailStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _parsed(line: bytes) -> tuple[str, Thumbnail]:
    photo = json.loads(line)
    maps = np.frombuffer(base64.b64decode(photo["maps"]), np.uint8)
    maps = maps.reshape(len(photo["labels"]), *photo["shape"])
    return photo["image"], Thumbnail(base64.b64decode(photo["webp"]), tuple(photo["labels"]), maps)
