import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from aia_jax.report.search_page import write_search_page
from tests.helpers.pictures import GREEN
from tests.helpers.search_hits import hit


class Elements(HTMLParser):
    """Tags with their attributes, and all texts but the style."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.open = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open = tag
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.open != "style" and data.strip():
            self.texts.append(data.strip())

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def write_page(tmp_path, query, hits, **options):
    write_search_page(tmp_path / "page.html", query, hits, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    return Elements(tmp_path / "page.html")


def pictures(page):
    """Size and middle pixel of each picture; photo and attention alternate."""
    found = []
    for attributes in page.named("img"):
        kind, _, content = attributes["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as picture:
            found.append((picture.size, picture.getpixel((picture.width // 2, picture.height // 2))))
    return found


def test_a_page_shows_every_hit(tmp_path):
    page = write_page(tmp_path, "a dog", [hit(correct=True), hit(correct=False), hit(keywords=())], title="demo")
    assert len(page.named("article")) == 3
    assert [attributes["alt"] for attributes in page.named("img")][:2] == ["a photo.jpg", "a photo.jpg with attention"]
    for text in ("demo", "a dog", "1. score 0.50", "✓ hit", "✗ false alarm", "visual 0.70", "dog", "no keywords"):
        assert text in page.texts
    assert {"width:70.0%"} == {attributes["style"] for attributes in page.named("span") if "style" in attributes}
    assert [attributes["style"] for attributes in page.named("li")][:2] == ["--weight:1.000", "--weight:0.667"]


def test_a_page_shows_the_attention(tmp_path):
    page = write_page(tmp_path, "a dog", [hit(attention=np.zeros((2, 2)))] * 2)
    assert [attributes.get("id") for attributes in page.named("input")] == ["all", None, None]
    assert {attributes["for"] for attributes in page.named("label") if "for" in attributes} == {"all"}
    (size, photo), (same_size, heat) = pictures(page)[:2]
    assert size == same_size == (40, 30)
    np.testing.assert_allclose(photo, GREEN, atol=3)
    assert np.ptp(heat) <= 3


@pytest.mark.parametrize(
    ("shape", "size"), [((480, 640), (320, 240)), ((900, 30), (21, 640)), ((30, 900), (320, 11)), ((1, 1), (1, 1))]
)
def test_thumbnails_are_small_and_keep_their_aspect(tmp_path, shape, size):
    assert [found for found, _ in pictures(write_page(tmp_path, "a dog", [hit(shape)]))] == [size, size]


def test_a_page_without_hits_says_so(tmp_path):
    assert write_page(tmp_path, "a dog", []).texts[-1] == "nothing found"


def test_a_page_accepts_any_name_and_any_number_of_keywords(tmp_path):
    many = tuple((f"word {k}", 0.0) for k in range(30))
    page = write_page(tmp_path, "a\x00b\ud800c\n d", [hit(name="\udcff.jpg", keywords=many), hit(name="")])
    assert "a�b�c d" in page.texts
    assert page.named("img")[0]["alt"] == "�.jpg"
    assert page.named("img")[2]["alt"] == "photo 2"
    assert "+18 more" in page.texts
    assert "word 12" not in page.texts


@pytest.mark.parametrize(
    "text",
    [
        "<b>\"$x_1$\" & '日本'</b><script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onload='alert(1)",
        "</title></style><base href=//x>",
        "javascript:alert(1)",
        "$policy ${style} $$",
        "<!--",
        "&lt;script&gt;&#60;b",
        "\ud800<b>\0\x1b[2J\r\n<i>",
    ],
)
def test_text_from_users_never_becomes_markup(tmp_path, text):
    plain, odd = (
        write_page(tmp_path, name, [hit(name=name, keywords=((name, 0.6), ("dog", 0.4)))], title=name)
        for name in ("plain", text)
    )
    shown = re.sub("[\x00-\x1f\ud800-\udfff]", "\ufffd", " ".join(text.split()))
    assert odd.texts.count(shown) >= 3
    assert odd.named("img")[0]["alt"] == shown
    assert not {"script", "link", "iframe", "b", "a"} & {tag for tag, _ in plain.tags}
    assert "url(" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [tag for tag, _ in odd.tags] == [tag for tag, _ in plain.tags]
    for (_, found), (_, expected) in zip(odd.tags, plain.tags, strict=True):
        assert found == {name: (value or "").replace("plain", shown) or value for name, value in expected.items()}
