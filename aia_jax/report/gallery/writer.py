"""Writes the gallery page photo by photo, so that memory does not grow with the number of photos.

The page contains facts about the page, an index with the names and labels of all photos, the script that draws the
page, and one block per photo with its picture and maps. The script decodes a block on demand. All text from users is in
inert JSON blocks, and the script adds this text to the page as text, never as HTML.
"""

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps

from aia_jax.report.page_parts import base_style, content_hash, inert_json, read_part, to_base64
from aia_jax.utils.files import atomic_path

_SCRIPTS = ("text", "photos", "grid", "filters", "detail", "tables", "curves", "confusions", "evaluation", "main")
_INDEX, _BLOCKS = "<!-- index -->", "<!-- blocks -->"
_SCALE = 10_000  # of scores in the index
OUTCOMES = ("hit", "miss", "false")


class PageLabel(NamedTuple):
    """A label of a photo.

    Attributes:
        label: index of the label in the labels of the page.
        score: the score, from 0 to 1.
        outcome: "hit", "miss" or "false" (false alarm) if the true labels are known, or else "".
    """

    label: int
    score: float
    outcome: str = ""


class PagePicture(NamedTuple):
    """A photo on the page.

    Attributes:
        webp: bytes of a WebP file.
        maps: attention maps by label index, uint8 `[h, w]` with a peak of 255.
    """

    webp: bytes
    maps: dict[int, np.ndarray]


class GalleryWriter:
    """A context manager that writes one page atomically.

    Args:
        path: path of the HTML file.
        title: title of the page.
        labels: names of all labels. `PageLabel.label` is an index in this list.
        facts: more content: `subtitle`, `problems` (pairs of an unreadable photo and the reason) and `evaluation` (see
            `aia_jax.evaluation.annotation`).
    """

    def __init__(self, path: Path, *, title: str, labels: Sequence[str], **facts: Any):
        self._path = path
        heat = to_base64(colormaps["inferno"](np.arange(256), bytes=True)[:, :3].tobytes())  # as in `figures.overlay`
        self._facts = {"title": title, "labels": list(labels), "scale": _SCALE, "heat": heat, **facts}

    def add(self, name: str, labels: Iterable[PageLabel], picture: PagePicture | None) -> None:
        """Appends a photo with its labels in the given order. `picture` is None if the photo has no picture."""
        labels = list(labels)
        entry: list[Any] = [name, [label.label for label in labels], [round(label.score * _SCALE) for label in labels]]
        if any(label.outcome for label in labels):
            entry.append([OUTCOMES.index(label.outcome) for label in labels])
        self._index.write((",\n" if self._count else "").encode() + inert_json(entry).encode())
        block = inert_json(_block(labels, picture) if picture else None)
        self._blocks.write(f'<script type="application/json" id="b{self._count}">{block}</script>\n'.encode())
        self._count += 1

    def __enter__(self) -> "GalleryWriter":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._count = 0
        self._index = tempfile.TemporaryFile(dir=self._path.parent)
        self._blocks = tempfile.TemporaryFile(dir=self._path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._index, self._blocks:
            if kind is None:
                self._assemble()

    def _assemble(self) -> None:
        before, rest = _page(self._facts).split(_INDEX)
        between, after = rest.split(_BLOCKS)
        with atomic_path(self._path) as temporary, temporary.open("wb") as file:
            for text, part in ((before, self._index), (between, self._blocks)):
                file.write(text.encode())
                part.seek(0)
                shutil.copyfileobj(part, file)
            file.write(after.encode())


def _block(labels: Sequence[PageLabel], picture: PagePicture) -> dict[str, Any]:
    """Returns a photo's block. Its `maps` have the order of `labels`, with None for a label without a map."""
    maps = [picture.maps.get(label.label) for label in labels]
    shape = next((list(heat.shape) for heat in maps if heat is not None), [])
    encoded = [None if heat is None else to_base64(np.ascontiguousarray(heat)) for heat in maps]
    return {"photo": to_base64(picture.webp), "shape": shape, "maps": encoded}


def _page(facts: dict[str, Any]) -> str:
    """Returns the page with its facts, and with comments as placeholders for the index and the blocks."""
    style = base_style() + read_part("gallery.css", __package__)
    code = "\n".join(read_part(f"{name}.js", __package__) for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{code}\n}})();\n'
    policy = (
        f"default-src 'none'; img-src data:; style-src {content_hash(style)}; script-src {content_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = Template(read_part("page.html", __package__))
    return template.substitute(policy=policy, style=style, script=script, facts=inert_json(facts))
