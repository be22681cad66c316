"""Writes the results of queries as one HTML file without scripts and without external files."""

import io
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

from aia_jax.report.figures import overlay, upsample
from aia_jax.report.page_parts import FALSE_ALARM, HIT, base_style, folder_url, read_part, to_base64
from aia_jax.utils.files import write_bytes

_WIDTH, _HEIGHT = 320, 640  # maximal size of a thumbnail in pixels
_MOST_KEYWORDS = 12
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class SearchHit(NamedTuple):
    """A photo in the results of a query.

    Attributes:
        image: uint8 `[H, W, 3]`, with any aspect ratio.
        name: file name of the photo, or "" to show no name.
        score: score for the query. A higher score is better.
        correct: whether the photo is relevant. None means unknown.
        attention: `[h, w]` >= 0, the visual attention to each cell of the feature map.
        weights: weight of the feature map and weight of the keywords. The sum is 1.
        keywords: pairs of a keyword and its attention weight, highest weight first. The sequence may be empty.

    A model without attention gives None for `attention`, `weights` and `keywords`.
    """

    image: np.ndarray
    name: str
    score: float
    correct: bool | None
    attention: np.ndarray | None
    weights: tuple[float, float] | None
    keywords: Sequence[tuple[str, float]] | None


def write_search_page(
    path: str | os.PathLike,
    queries: Sequence[tuple[str, Sequence[SearchHit]]],
    *,
    title: str,
    folder: Path | None = None,
) -> None:
    """Writes each query and its results, best first, to the HTML file `path`, atomically.

    The page shows for each photo its score, name, weight of the feature map, weight of the keywords, and keywords.
    Readers hover over a photo, or tap it, to see its visual attention. A checkbox shows the attention of all photos.
    With `folder`, the folder of the photos, each name is a link to the file.
    """
    url = folder_url(folder, Path(path)) if folder else ""
    page = Template(read_part("search_page.html")).substitute(
        policy=_POLICY,
        style=base_style() + read_part("search_page.css"),
        title=_text(title),
        results="\n".join(_section(query, hits, url) for query, hits in queries),
    )
    write_bytes(Path(path), page.encode())


def _section(query: str, hits: Sequence[SearchHit], url: str) -> str:
    cards = "".join(_card(place, hit, url) for place, hit in enumerate(hits, 1)) or "<p>nothing found</p>"
    return f"<section><h1>{_text(query)}</h1>{cards}</section>"


def _card(place: int, hit: SearchHit, url: str) -> str:
    height, width = hit.image.shape[:2]
    scale = min(1, _WIDTH / width, _HEIGHT / height)
    size = max(round(scale * width), 1), max(round(scale * height), 1)
    photo = np.asarray(Image.fromarray(hit.image).resize(size, Image.Resampling.LANCZOS))
    alt = _text(hit.name) or f"photo {place}"
    link = f'<a href="{url}{quote(os.fsencode(hit.name))}">{_text(hit.name)}</a>' if url else _text(hit.name)
    name = f'<p class="name">{link}</p>' if hit.name else ""
    mark = ""
    if hit.correct is not None:
        sign, _, meaning = HIT if hit.correct else FALSE_ALARM
        mark = f'<span class="{"hit" if hit.correct else "false"}">{sign} {meaning}</span>'
    return f"""
<article>
<label class="photo"><input type="checkbox"><img src="{_jpeg(photo)}" alt="{alt}">{_heat(hit, photo, alt)}</label>
<div class="text">
<p class="facts"><span>{place}. score {hit.score:.2f}</span>{mark}</p>
{name}
{_reasons(hit)}
</div>
</article>"""


def _heat(hit: SearchHit, photo: np.ndarray, alt: str) -> str:
    if hit.attention is None:
        return ""
    heat = overlay(photo, upsample(np.asarray(hit.attention, np.float32), photo.shape[:2]))
    return f'<img class="heat" src="{_jpeg(np.round(255 * heat).astype(np.uint8))}" alt="{alt} with attention">'


def _reasons(hit: SearchHit) -> str:
    if hit.weights is None:
        return ""
    visual, percent = round(float(hit.weights[0]), 2), f"{100 * hit.weights[0]:.1f}"
    return f"""<div class="split">
<span class="visual" style="width:{percent}%"></span><span class="keywords"></span></div>
<p class="numbers"><span class="visual" title="weight of the feature map in the score">visual {visual:.2f}</span>
<span class="keywords" title="weight of the keywords in the score">keywords {1 - visual:.2f}</span></p>
<ul>{_chips(hit.keywords)}</ul>"""


def _chips(keywords: Sequence[tuple[str, float]]) -> str:
    if not keywords:
        return '<li class="more" style="--weight:0">no keywords'
    highest = max(max(weight for _, weight in keywords), np.finfo(np.float32).tiny)
    chips = [
        f'<li style="--weight:{max(weight, 0) / highest:.3f}"><bdi>{_text(word)}</bdi> <small>{weight:.2f}</small>'
        for word, weight in keywords[:_MOST_KEYWORDS]
    ]
    if len(keywords) > _MOST_KEYWORDS:
        chips.append(f'<li class="more" style="--weight:0">+{len(keywords) - _MOST_KEYWORDS} more')
    return "\n".join(chips)


def _jpeg(image: np.ndarray) -> str:
    """Encodes uint8 `[H, W, 3]` as a data URL."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + to_base64(file.getvalue())


def _text(text: str) -> str:
    """Escapes `text` for HTML. Replaces control characters and lone surrogates by `�`."""
    return escape(re.sub("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "�", " ".join(text.split())))
