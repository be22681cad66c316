"""Pages of search results, and ROC curves."""

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aia_jax.report.page_parts import HIT
from aia_jax.report.search import draw_roc
from aia_jax.report.search_page import SearchHit, write_search_page
from tests.helpers.pictures import GREEN, ink

CURVE = np.linspace(0, 1, 9)
UNUSUAL = "<b>\"$x_1$\" & '日本'</b><script>alert(1)</script>"


def hit(shape: tuple[int, int] = (30, 40), **changes: Any) -> SearchHit:
    """A hit with a green photo of this height and width."""
    fields = {
        "image": np.full((*shape, 3), GREEN, np.uint8),
        "name": "a photo.jpg",
        "score": 0.5,
        "correct": None,
        "attention": np.random.default_rng(0).random((3, 3)),
        "weights": (0.7, 0.3),
        "keywords": (("dog", 0.6), ("beach", 0.4)),
    }
    return SearchHit(**fields | changes)


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


def write_page(tmp_path, query, hits):
    write_search_page(tmp_path / "page.html", [(query, hits)], title=query)
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


def test_a_page_shows_every_hit_and_its_attention(tmp_path):
    hits = [hit(correct=True, attention=np.zeros((2, 2))), hit(correct=False), hit(keywords=())]
    page = write_page(tmp_path, "a dog", hits)
    assert len(page.named("article")) == 3
    assert [attributes["alt"] for attributes in page.named("img")][:2] == ["a photo.jpg", "a photo.jpg with attention"]
    for text in ("a dog", "1. score 0.50", "✓ hit", "✗ false alarm", "visual 0.70", "dog", "no keywords"):
        assert text in page.texts
    assert {"width:70.0%"} == {attributes["style"] for attributes in page.named("span") if "style" in attributes}
    assert [attributes["style"] for attributes in page.named("li")][:2] == ["--weight:1.000", "--weight:0.667"]
    assert [attributes.get("id") for attributes in page.named("input")] == ["all", None, None, None]
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


def test_a_page_accepts_any_name_and_any_number_of_keywords(tmp_path):
    many = tuple((f"word {k}", 0.0) for k in range(30))
    page = write_page(tmp_path, "a\x00b\ud800c\n d", [hit(name="\udcff.jpg", keywords=many), hit(name="")])
    assert "a�b�c d" in page.texts
    assert page.named("img")[0]["alt"] == "�.jpg"
    assert page.named("img")[2]["alt"] == "photo 2"
    assert "+18 more" in page.texts
    assert "word 12" not in page.texts
    assert write_page(tmp_path, "a dog", []).texts[-1] == "nothing found"


def test_each_query_has_its_own_results(tmp_path):
    write_search_page(tmp_path / "page.html", [("a dog", [hit()] * 2), ("a cat", []), ("sea", [hit()])], title="demo")
    page = Elements(tmp_path / "page.html")
    assert [tag for tag, _ in page.tags if tag in {"h1", "article"}] == [
        "h1",
        "article",
        "article",
        "h1",
        "h1",
        "article",
    ]
    assert [text for text in page.texts if text in {"demo", "a dog", "a cat", "sea", "nothing found"}] == [
        "demo",
        "a dog",
        "a cat",
        "nothing found",
        "sea",
    ]


@pytest.mark.parametrize("visual", [0.0, 0.27, 0.645, np.float32(1)])
def test_the_shown_weights_have_the_sum_1(tmp_path, visual):
    page = write_page(tmp_path, "a dog", [hit(weights=(visual, 1 - visual))])
    shown = [float(text.split()[1]) for text in page.texts if text.startswith(("visual ", "keywords "))]
    assert shown == pytest.approx([visual, 1 - visual], abs=0.0051)
    assert sum(shown) == 1


def test_the_attention_is_where_the_map_is_high(tmp_path):
    attention = np.zeros((1, 9))
    attention[0, 8] = 1
    page = write_page(tmp_path, "a dog", [hit((90, 270), attention=attention)])
    heat = Image.open(io.BytesIO(base64.b64decode(page.named("img")[1]["src"].partition(",")[2])))
    assert np.ptp(heat.getpixel((60, 45))) <= 3
    assert np.ptp(heat.getpixel((265, 45))) > 60


def test_names_link_to_the_files_of_the_folder(tmp_path):
    (tmp_path / "my photos").mkdir()
    page = tmp_path / "page.html"
    hits = [hit(name="a b/#1.jpg"), hit(name="\udcff.jpg")]
    write_search_page(page, [("a dog", hits)], title="a dog", folder=tmp_path / "my photos")
    links = [attributes["href"] for attributes in Elements(page).named("a")]
    assert links == ["./my%20photos/a%20b/%231.jpg", "./my%20photos/%FF.jpg"]


@pytest.mark.parametrize(
    "text",
    [
        UNUSUAL,
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
        write_page(tmp_path, name, [hit(name=name, keywords=((name, 0.6), ("dog", 0.4)))]) for name in ("plain", text)
    )
    shown = re.sub("[\x00-\x1f\ud800-\udfff]", "\ufffd", " ".join(text.split()))
    assert odd.texts.count(shown) >= 3
    assert odd.named("img")[0]["alt"] == shown
    assert not {"script", "link", "iframe", "b", "a"} & {tag for tag, _ in plain.tags}
    assert "url(" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [tag for tag, _ in odd.tags] == [tag for tag, _ in plain.tags]
    for (_, found), (_, expected) in zip(odd.tags, plain.tags, strict=True):
        assert found == {name: (value or "").replace("plain", shown) or value for name, value in expected.items()}


def test_a_good_curve_is_above_a_bad_one(drawn):
    low, high = np.array([0, 0, 1]), np.array([0, 1, 1])
    curves = {"best": (low, high, 1.0)}, {"worst": (high, low, 0.0)}
    images = [ink(drawn(draw_roc, curve, published={}), HIT.color) for curve in curves]
    for axis in (0, 1):  # the best curve follows the left and upper edges, the worst the lower and right ones
        best, worst = (image.sum(axis).argmax() for image in images)
        assert worst - best > 400


def test_the_highest_areas_are_listed_first(drawn, written):
    curves = {f"run {k}": (CURVE, CURVE**power, 1 / (1 + power)) for k, power in enumerate((0.8, 0.3, 0.5))}
    published = {"B": 0.627, "A": 0.673}
    few = drawn(draw_roc, curves | {"x" * 300: (CURVE, CURVE, 0.5)}, published=published)
    listed = [text for text in written if text in curves or text in {"A", "B", "published, other data:", "chance"}]
    assert listed == ["run 1", "run 2", "run 0", "chance", "published, other data:", "A", "B"]
    assert {"0.769", "0.667", "0.556", "0.500", "0.673", "0.627"} <= set(written)
    many = drawn(draw_roc, {f"$x_{k}$": (CURVE, CURVE, 0.5) for k in range(40)}, published=published)
    assert len(few) < len(many)
    assert all((image[:, -20:] == 255).all() and (image[-10:] == 255).all() for image in (few, many))
