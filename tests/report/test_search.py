"""Pictures and pages of search results, and ROC curves."""

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aia_jax.report.figures import FALSE_ALARM, HIT
from aia_jax.report.search import KEYWORDS, VISUAL, SearchHit, draw_roc, draw_search
from aia_jax.report.search_page import write_search_page
from tests.helpers.pictures import GREEN, count_runs, ink

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


@pytest.mark.parametrize(("counts", "columns", "rows"), [((1,), 1, 1), ((3, 2), 3, 2), ((10,), 5, 2), ((2, 0), 2, 1)])
def test_every_query_has_its_photos(drawn, counts, columns, rows):
    image = drawn(draw_search, [("a dog", [hit()] * count) for count in counts], title="demo")
    photos = ink(image, GREEN)
    assert (count_runs(photos.any(0)), count_runs(photos.any(1))) == (columns, rows)
    assert 700 <= image.shape[1] <= 1440


def test_hits_have_marks_only_if_their_correctness_is_known(drawn):
    images = [drawn(draw_search, [("a dog", [hit(correct=correct)])]) for correct in (True, False, None)]
    correct, wrong, unknown = images
    assert ink(correct, HIT.color).sum() > 4 * ink(wrong, HIT.color).sum() > 0
    assert ink(wrong, FALSE_ALARM.color).sum() > ink(correct, FALSE_ALARM.color).sum() > 0
    assert not ink(unknown, HIT.color).any()
    assert not ink(unknown, FALSE_ALARM.color).any()


@pytest.mark.parametrize("visual", [0.0, 0.27, 0.645, np.float32(1)])
def test_the_bar_shows_the_weights(drawn, visual):
    found = hit(weights=(visual, 1 - visual), keywords=())
    assert sum(map(float, found.rounded_weights())) == 1
    image = drawn(draw_search, [("a dog", [found])])
    lengths = [ink(image[200:], color).sum(1).max() for color in (VISUAL, KEYWORDS)]
    assert lengths[0] / sum(lengths) == pytest.approx(visual, abs=0.03)


def test_the_photo_is_above_its_attention(drawn):
    attention = np.zeros((1, 9))
    attention[0, 8] = 1
    image = drawn(draw_search, [("a dog", [hit(attention=attention)])])
    rows, columns = (np.flatnonzero(ink(image, GREEN).any(axis)) for axis in (1, 0))
    below = image[rows[-1] + len(rows) // 2, columns].astype(int)
    assert np.ptp(below[len(columns) // 4]) == 0
    assert np.ptp(below[-8]) > 60
    np.testing.assert_array_equal(np.ptp(hit(attention=np.zeros((4, 6))).render(40, 30)[1], axis=-1), 0)
    assert np.ptp(hit(attention=np.ones((1, 1))).render(40, 30)[1], axis=-1).min() > 60


@pytest.mark.parametrize("shape", [(90, 30), (30, 90), (40, 40), (400, 4), (1, 1)])
def test_photos_keep_their_aspect(drawn, shape):
    photos = ink(drawn(draw_search, [("a dog", [hit(shape)])]), GREEN)
    height, width = photos.any(1).sum(), photos.any(0).sum()
    assert max(height, width) < 190
    if min(shape) > 10:
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.1)


def test_keywords_have_their_weights_and_a_long_list_ends_in_a_count(drawn, written):
    many = tuple((f"word {k}", 0.1) for k in range(10))
    drawn(draw_search, [("a dog", [hit(), hit(keywords=()), hit(keywords=many)]), ("a cat", [])])
    assert {"dog", "0.60", "no keywords", "word 3", "+6 more", "nothing found"} <= set(written)
    assert abs(written.index("dog") - written.index("0.60")) == 1
    assert "word 4" not in written


def test_unusual_texts_are_drawn_on_the_page(drawn, written):
    odd = hit(name="", correct=True, keywords=((UNUSUAL, 0.9), ("x" * 300, 0.1)))
    image = drawn(draw_search, [(UNUSUAL * 20, [odd, hit(name="y" * 300)])], title=UNUSUAL * 20)
    assert image.shape[1] < 900
    assert (image[:, -20:] == 255).all()
    assert any(text.startswith("“<b>") and text.endswith("…") for text in written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((4, 4), np.uint8)}, r"image must be uint8 \[H, W, 3\].*\[4, 4\]"),
        ({"image": np.zeros((4, 4, 3))}, "image must be uint8"),
        ({"attention": np.zeros(4)}, r"attention must be \[h, w\].*\[4\]"),
        ({"attention": np.zeros((0, 4))}, r"attention must be \[h, w\]"),
        ({"attention": -np.ones((2, 2))}, "at least 0"),
        ({"attention": np.full((2, 2), np.nan)}, "finite"),
        ({"weights": (0.5, 0.6)}, r"sum of 1, not \(0.5, 0.6\)"),
        ({"weights": (1.5, -0.5)}, "two fractions"),
        ({"weights": (1.0,)}, "two fractions"),
    ],
)
def test_other_arrays_and_weights_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        hit(**changes)


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
    write_search_page(tmp_path / "page.html", query, hits)
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


def test_names_link_to_the_files_of_the_folder(tmp_path):
    (tmp_path / "my photos").mkdir()
    page = tmp_path / "page.html"
    write_search_page(page, "a dog", [hit(name="a b/#1.jpg"), hit(name="\udcff.jpg")], tmp_path / "my photos")
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
    images = [ink(drawn(draw_roc, curve), HIT.color) for curve in curves]
    for axis in (0, 1):  # the best curve follows the left and upper edges, the worst the lower and right ones
        best, worst = (image.sum(axis).argmax() for image in images)
        assert worst - best > 400


def test_the_highest_areas_are_listed_first(drawn, written):
    curves = {f"run {k}": (CURVE, CURVE**power, 1 / (1 + power)) for k, power in enumerate((0.8, 0.3, 0.5))}
    few = drawn(draw_roc, curves | {"x" * 300: (CURVE, CURVE, 0.5)}, published={"B": 0.627, "A": 0.673})
    listed = [text for text in written if text in curves or text in {"A", "B", "published, other data:", "chance"}]
    assert listed == ["run 1", "run 2", "run 0", "chance", "published, other data:", "A", "B"]
    assert {"0.769", "0.667", "0.556", "0.500", "0.673", "0.627"} <= set(written)
    many = drawn(draw_roc, {f"$x_{k}$": (CURVE, CURVE, 0.5) for k in range(40)})
    assert len(few) < len(many)
    assert all((image[:, -20:] == 255).all() and (image[-10:] == 255).all() for image in (few, many))


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "at least one curve"),
        ({"a": (CURVE, CURVE[1:], 0.5)}, r"a: rates must be two \[P\].*\[9\] and \[8\]"),
        ({"a": (CURVE[:1], CURVE[:1], 0.5)}, "P > 1"),
        ({"a": (0.5, 0.5, 0.5)}, "P > 1"),
        ({"a": (CURVE, 100 * CURVE, 0.5)}, "a: rates must lie in 0..1"),
        ({"a": (CURVE, np.full(9, np.nan), 0.5)}, "0..1"),
    ],
)
def test_other_curves_and_no_queries_are_refused(tmp_path, curves, message):
    with pytest.raises(ValueError, match=message):
        draw_roc(tmp_path / "roc.png", curves)
    with pytest.raises(ValueError, match="at least one query"):
        draw_search(tmp_path / "search.png", [])
    assert not list(tmp_path.iterdir())
