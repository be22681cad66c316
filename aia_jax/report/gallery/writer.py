"""Writes the gallery page photo by photo, so that memory does not grow with the number of photos.

The page contains facts such as the title, an index with the names and labels of all photos, the script that draws the
page, and a JSON block per photo with the photo and its attention maps. The script decodes a block when it shows the
photo. All text from users is in JSON. The script adds this text to the page as text, never as HTML.
"""

import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from aia_jax.report.page_parts import base_style, content_hash, inert_json, read_part, to_base64
from aia_jax.utils.files import atomic_path
from aia_jax.utils.messages import format_count

_SCRIPTS = (
    *("text", "photos", "grid", "cards", "filters", "detail"),
    *("tables", "curves", "confusions", "evaluation", "main"),
)
_INDEX, _BLOCKS = "<!-- index -->", "<!-- blocks -->"
_SAMPLE, _LARGE = 32, 500  # photos that give the size of a page; megabytes that browsers open slowly
_SCALE = 10_000  # the index has scores as integers from 0 to this number
_NO_SCORE = -(2**15)  # as in photos.js
OUTCOMES = ("hit", "miss", "false")


class PageLabel(NamedTuple):
    """A label of a photo.

    Attributes:
        label: index of the label in the argument `labels` of `write_gallery_page`.
        score: the score, from 0 to 1.
        outcome: "hit", "miss" or "false" (false alarm) if the true labels are known, or else "".
    """

    label: int
    score: float
    outcome: str = ""


class PagePhoto(NamedTuple):
    """A photo on the page.

    Attributes:
        name: file name.
        labels: labels in the order of display.
        webp: bytes of a WebP file, or b"" if the photo has no picture.
        maps: `{label index: attention map}`. A map is uint8 `[h, w]` with a peak of 255.
    """

    name: str
    labels: Sequence[PageLabel]
    webp: bytes
    maps: Mapping[int, np.ndarray]


def write_gallery_page(
    path: Path, photos: Iterable[PagePhoto], *, title: str, labels: Sequence[str], **facts: Any
) -> None:
    """Writes the page atomically to `path`.

    Args:
        labels: names of all labels. `PageLabel.label` is an index in this list.
        facts: more content: `subtitle`, `problems` (pairs of an unreadable photo and the reason), and `evaluation`
            (metrics and curves from `aia_jax.evaluation.annotation_page`), `folder` (the URL of the photos' folder, see
            `page_parts.folder_url`), and `queries` (pairs of a sentence and the result of `encode_scores`).
    """
    from matplotlib import colormaps

    heat = to_base64(colormaps["inferno"](np.arange(256), bytes=True)[:, :3].tobytes())  # as in `figures.overlay`
    page = _page({"title": title, "labels": list(labels), "scale": _SCALE, "heat": heat, **facts})
    before, rest = page.split(_INDEX)
    between, after = rest.split(_BLOCKS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=path.parent) as index, TemporaryFile(dir=path.parent) as blocks:
        for number, photo in enumerate(photos):
            index.write((",\n" if number else "").encode() + inert_json(_index_entry(photo)).encode())
            block = inert_json(_block(photo))
            blocks.write(f'<script type="application/json" id="b{number}">{block}</script>\n'.encode())
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            for text, part in ((before, index), (between, blocks)):
                file.write(text.encode())
                part.seek(0)
                shutil.copyfileobj(part, file)
            file.write(after.encode())


def encode_scores(scores: Iterable[float | None]) -> str:
    """Encodes the scores of all photos for a query, in the order of the photos. None: the photo has no score."""
    thousandths = [_NO_SCORE if score is None else round(1000 * score) for score in scores]
    return to_base64(np.array(thousandths, "<i2").tobytes())


def announce_size(photos: Iterable[PagePhoto], total: int, name: str) -> Iterable[PagePhoto]:
    """Returns `photos`. Before the page `name` is made, prints its size, estimated from the first of `total` photos."""
    rest = iter(photos)
    first = list(itertools.islice(rest, _SAMPLE))
    sampled = sum(len(inert_json(_index_entry(photo))) + len(inert_json(_block(photo))) for photo in first)
    megabytes = sampled / max(len(first), 1) * total / 1e6
    advice = "; browsers open so large a page slowly, and without --html it is not made" * (megabytes > _LARGE)
    tqdm.write(f"{name}: {format_count(total, 'photo')}, about {megabytes:,.1f} MB{advice}")
    return itertools.chain(first, rest)


def _index_entry(photo: PagePhoto) -> list[Any]:
    labels, scores, outcomes = zip(*photo.labels, strict=True) if photo.labels else ((), (), ())
    entry = [photo.name, labels, [round(score * _SCALE) for score in scores]]
    return [*entry, [OUTCOMES.index(outcome) for outcome in outcomes]] if any(outcomes) else entry


def _block(photo: PagePhoto) -> dict[str, Any] | None:
    """Returns picture and attention maps of a photo. The maps have the order of the labels; None: no map."""
    if not photo.webp:
        return None
    maps = [photo.maps.get(label.label) for label in photo.labels]
    shape = next((list(heat.shape) for heat in maps if heat is not None), [])
    encoded = [None if heat is None else to_base64(np.ascontiguousarray(heat)) for heat in maps]
    return {"photo": to_base64(photo.webp), "shape": shape, "maps": encoded}


def _page(facts: dict[str, Any]) -> str:
    """Returns the HTML page with `facts`. HTML comments are placeholders for the index and the blocks."""
    style = base_style() + read_part("gallery.css", __package__)
    code = "\n".join(read_part(f"{name}.js", __package__) for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{code}\n}})();\n'
    policy = (
        f"default-src 'none'; img-src data:; style-src {content_hash(style)}; script-src {content_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = Template(read_part("page.html", __package__))
    return template.substitute(policy=policy, style=style, script=script, facts=inert_json(facts))
