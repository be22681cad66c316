"""Writes the page photo by photo, so that memory does not grow with them.

The page holds, in this order: its facts, an index with every photo's name and labels, the script, which can then draw,
and a block of each photo's picture and maps, which the script decodes where it is looked at. All of a user's words lie
in blocks of inert JSON and reach the page as text.
"""

import base64
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps

from aia_jax.report.page_parts import base_style, content_hash, inert_json

_SCRIPTS = (
    "text.js",
    "photos.js",
    "grid.js",
    "filters.js",
    "detail.js",
    "tables.js",
    "curves.js",
    "confusions.js",
    "evaluation.js",
    "main.js",
)
_INDEX, _BLOCKS = "<!-- index -->", "<!-- blocks -->"
_SCALE = 10_000  # of scores in the index
OUTCOMES = ("hit", "miss", "false")


class PageLabel(NamedTuple):
    """A label of a photo.

    Attributes:
        label: its place among the page's labels.
        score: 0 to 1.
        outcome: "hit", "miss" or "false" (alarm) where the truth is known, else "".
    """

    label: int
    score: float
    outcome: str = ""


class PagePicture(NamedTuple):
    """A photo as the page shows it.

    Attributes:
        webp: a WebP file.
        maps: of labels, by their places: uint8 `[h, w]`, 255 at the map's peak.
    """

    webp: bytes
    maps: dict[int, np.ndarray]


class GalleryWriter:
    """Writes one page, whole or not at all; a context.

    Args:
        path: of the HTML file.
        title: what is shown.
        labels: names, in the order that `PageLabel.label` counts.
        facts: more of what the page shows: `subtitle`; `problems`, pairs of a photo that cannot be read and why;
            `evaluation`, see `commands.annotation_report`.
    """

    def __init__(self, path: Path, *, title: str, labels: Sequence[str], **facts: Any):
        self._path = path
        self._facts = {"title": title, "labels": list(labels), "scale": _SCALE, "heat": _heat_colors(), **facts}

    def add(self, name: str, labels: Iterable[PageLabel], picture: PagePicture | None) -> None:
        """Appends a photo, with its labels in the order in which they are shown; None: its picture is not known."""
        labels = list(labels)
        entry: list[Any] = [name, [label.label for label in labels], [round(label.score * _SCALE) for label in labels]]
        if any(label.outcome for label in labels):
            entry.append([OUTCOMES.index(label.outcome) for label in labels])
        self._index.write((",\n" if self._count else "").encode() + inert_json(entry).encode())
        block = _block(labels, picture) if picture else None
        self._blocks.write(
            f'<script type="application/json" id="b{self._count}">{inert_json(block)}</script>\n'.encode()
        )
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
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                for text, part in ((before, self._index), (between, self._blocks)):
                    file.write(text.encode())
                    part.seek(0)
                    shutil.copyfileobj(part, file)
                file.write(after.encode())
            partial.replace(self._path)
        finally:
            partial.unlink(missing_ok=True)


def _block(labels: Sequence[PageLabel], picture: PagePicture) -> dict[str, Any]:
    """`maps` are in the order of the labels, null where there is none."""
    maps = [picture.maps.get(label.label) for label in labels]
    shape = next((list(heat.shape) for heat in maps if heat is not None), [])
    encoded = [None if heat is None else _base64(np.ascontiguousarray(heat)) for heat in maps]
    return {"photo": _base64(picture.webp), "shape": shape, "maps": encoded}


def _page(facts: dict[str, Any]) -> str:
    """The page with its facts, and marks where index and blocks belong."""
    folder = resources.files(__package__)
    style = base_style() + (folder / "gallery.css").read_text(encoding="utf-8")
    code = "\n".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{code}\n}})();\n'
    policy = (
        f"default-src 'none'; img-src data:; style-src {content_hash(style)}; script-src {content_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = Template((folder / "page.html").read_text(encoding="utf-8"))
    return template.substitute(policy=policy, style=style, script=script, facts=inert_json(facts))


def _heat_colors() -> str:
    """The 256 colours of `report.heat`, red, green and blue, as base64."""
    return _base64((colormaps["inferno"](np.arange(256), bytes=True)[:, :3]).tobytes())


def _base64(data: bytes | np.ndarray) -> str:
    return base64.b64encode(data).decode()
