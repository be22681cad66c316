"""What a query found as one HTML file, without scripts and without anything from elsewhere."""

import base64
import io
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from aia_jax.report.page_parts import base_style
from aia_jax.report.search import KEYWORDS, VISUAL, SearchHit
from aia_jax.utils.files import write_bytes

_WIDTH, _HEIGHT = 320, 640  # pixels of a thumbnail, at most
_MOST_KEYWORDS = 12
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_MODALITIES = f":root {{ --visual: {VISUAL}; --keywords: {KEYWORDS}; }}"
# The dark scheme's colours are lighter ones of the same hues.
_STYLE = """
@media (prefers-color-scheme: dark) { :root { --visual: #c9a5d8; --keywords: #8fcf95; } }
body { max-width: 90rem; padding: 1.25rem; }
h1 { margin: 0 0 .75rem; font-size: 1.6rem; line-height: 1.25; unicode-bidi: plaintext; }
.title, .none { margin: 0; color: var(--quiet); }
#all, [for="all"] { cursor: pointer; }
#all { width: 1.1rem; height: 1.1rem; margin: 0 .35rem 0 0; vertical-align: -.15rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: 1rem;
  margin-top: 1rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
.photo { display: block; position: relative; aspect-ratio: 4 / 3; background: var(--line); cursor: pointer; }
.photo img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.photo input { position: absolute; opacity: 0; }
.photo .heat { opacity: 0; transition: opacity .15s; }
#all:checked ~ main .heat, .photo input:checked ~ .heat { opacity: 1; }
@media (hover: hover) { .photo:hover .heat { opacity: 1; } }
.photo:has(:focus-visible) { outline: 3px solid var(--visual); outline-offset: -3px; }
.text { padding: .7rem .85rem .85rem; }
.facts { display: flex; justify-content: space-between; gap: .75rem; margin: 0; }
.name { margin: 0; color: var(--quiet); font-size: .875rem; unicode-bidi: plaintext; }
.split { display: flex; height: .45rem; margin: .6rem 0 .15rem; border-radius: .25rem; overflow: hidden; }
.split .visual { background: var(--visual); } .split .keywords { flex: 1; background: var(--keywords); }
.numbers { display: flex; justify-content: space-between; margin: 0 0 .55rem; font-size: .8125rem; }
.numbers .visual { color: var(--visual); } .numbers .keywords { color: var(--keywords); }
ul { display: flex; flex-wrap: wrap; gap: .35rem; margin: 0; padding: 0; list-style: none; font-size: .875rem; }
li { padding: .1rem .5rem; border-radius: 1rem; border: 1px solid rgb(var(--chip) / .35);
  background: rgb(var(--chip) / calc(.34 * var(--weight))); }
li small { opacity: .8; }
.more { padding-left: 0; border-color: transparent; color: var(--quiet); }
"""


def write_search_page(path: str | os.PathLike, query: str, hits: Sequence[SearchHit], *, title: str = "") -> None:
    """Writes what `query` found, the best first, as an HTML file at `path`, whole or not at all.

    A photo shows where the search looks while the pointer is over it, once it was tapped, or with all others; below it
    stand its score, its name, how the score is split between the map and the keywords, and the keywords, the heaviest
    in the strongest colour.
    """
    found = "".join(_card(place, hit) for place, hit in enumerate(hits, 1))
    switch = '<input type="checkbox" id="all"><label for="all">show where it looks</label>' if hits else ""
    heading = " · ".join(filter(None, (_text(query), _text(title))))
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{heading}</title>
<style>{base_style()}{_MODALITIES}{_STYLE}</style>
</head>
<body>
<header>{_paragraph("title", title)}<h1>{_text(query)}</h1></header>
{switch}
<main>{found or '<p class="none">nothing found</p>'}</main>
</body>
</html>
"""
    write_bytes(Path(path), page.encode())


def _card(place: int, hit: SearchHit) -> str:
    height, width = hit.image.shape[:2]
    scale = min(1, _WIDTH / width, _HEIGHT / height)
    photo, heat = map(_jpeg, hit.render(max(round(scale * width), 1), max(round(scale * height), 1)))
    alt = _text(hit.name) or f"photo {place}"
    visual, keywords = hit.split()
    percent = f"{100 * hit.weights[0]:.1f}"
    turned_out = ""
    if hit.mark:
        kind = "hit" if hit.right else "false"
        turned_out = f'<span class="{kind}">{hit.mark.sign} {hit.mark.meaning}</span>'
    return f"""
<article>
<label class="photo"><input type="checkbox"><img src="{photo}" alt="{alt}"
><img class="heat" src="{heat}" alt="{alt}, bright where the search looks"></label>
<div class="text">
<p class="facts"><span>{place}. score {hit.score:.2f}</span>{turned_out}</p>
{_paragraph("name", hit.name)}
<div class="split"><span class="visual" style="width:{percent}%"></span><span class="keywords"></span></div>
<p class="numbers"><span class="visual">visual {visual}</span><span class="keywords">keywords {keywords}</span></p>
<ul>{_chips(hit.keywords)}</ul>
</div>
</article>"""


def _chips(keywords: Sequence[tuple[str, float]]) -> str:
    if not keywords:
        return '<li class="more" style="--weight:0">no keywords'
    heaviest = max(max(weight for _, weight in keywords), np.finfo(np.float32).tiny)
    chips = [
        f'<li style="--weight:{max(weight, 0) / heaviest:.3f}"><bdi>{_text(word)}</bdi> <small>{weight:.2f}</small>'
        for word, weight in keywords[:_MOST_KEYWORDS]
    ]
    if len(keywords) > _MOST_KEYWORDS:
        chips.append(f'<li class="more" style="--weight:0">+{len(keywords) - _MOST_KEYWORDS} more')
    return "\n".join(chips)


def _paragraph(kind: str, text: str) -> str:
    return f'<p class="{kind}">{_text(text)}</p>' if text else ""


def _jpeg(image: np.ndarray) -> str:
    """uint8 `[H, W, 3]` as a data URL."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _text(text: str) -> str:
    """`text` escaped for HTML, control characters and halves of characters as `�`."""
    return escape(re.sub("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "�", " ".join(text.split())))
