"""Writes the results of a query as one HTML file without scripts and without external files."""

import io
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np
from PIL import Image

from aia_jax.report.page_parts import base_style, folder_url, read_part, to_base64
from aia_jax.report.search import KEYWORDS, VISUAL, SearchHit
from aia_jax.utils.files import write_bytes

_WIDTH, _HEIGHT = 320, 640  # maximal size of a thumbnail in pixels
_MOST_KEYWORDS = 12
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MODALITIES = f":root {{ --visual: {VISUAL}; --keywords: {KEYWORDS}; }}\n"


def write_search_page(
    path: str | os.PathLike, query: str, hits: Sequence[SearchHit], folder: Path | None = None
) -> None:
    """Writes the results of `query`, best first, to the HTML file `path`, atomically.

    The page shows for each photo its score, name, weight of the feature map, weight of the keywords, and keywords.
    Readers hover over a photo, or tap it, to see its visual attention. A checkbox shows the attention of all photos.
    With `folder`, the folder of the photos, each name is a link to the file.
    """
    url = folder_url(folder, Path(path)) if folder else ""
    cards = "".join(_card(place, hit, url) for place, hit in enumerate(hits, 1))
    switch = '<input type="checkbox" id="all"><label for="all">show attention</label>' if hits else ""
    page = Template(read_part("search_page.html")).substitute(
        policy=_POLICY,
        style=base_style() + _MODALITIES + read_part("search_page.css"),
        query=_text(query),
        switch=switch,
        cards=cards or '<p class="none">nothing found</p>',
    )
    write_bytes(Path(path), page.encode())


def _card(place: int, hit: SearchHit, url: str) -> str:
    height, width = hit.image.shape[:2]
    scale = min(1, _WIDTH / width, _HEIGHT / height)
    photo, heat = map(_jpeg, hit.render(max(round(scale * width), 1), max(round(scale * height), 1)))
    alt = _text(hit.name) or f"photo {place}"
    visual, keywords = hit.rounded_weights()
    percent = f"{100 * hit.weights[0]:.1f}"
    link = f'<a href="{url}{quote(os.fsencode(hit.name))}">{_text(hit.name)}</a>' if url else _text(hit.name)
    name = f'<p class="name">{link}</p>' if hit.name else ""
    mark = ""
    if hit.mark:
        mark = f'<span class="{"hit" if hit.correct else "false"}">{hit.mark.sign} {hit.mark.meaning}</span>'
    return f"""
<article>
<label class="photo"><input type="checkbox"><img src="{photo}" alt="{alt}"
><img class="heat" src="{heat}" alt="{alt} with attention"></label>
<div class="text">
<p class="facts"><span>{place}. score {hit.score:.2f}</span>{mark}</p>
{name}
<div class="split"><span class="visual" style="width:{percent}%"></span><span class="keywords"></span></div>
<p class="numbers"><span class="visual" title="weight of the feature map in the score">visual {visual}</span>
<span class="keywords" title="weight of the keywords in the score">keywords {keywords}</span></p>
<ul>{_chips(hit.keywords)}</ul>
</div>
</article>"""


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
