"""Pictures and pages of image search: pixels, and what a browser would be given."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from aia_jax.report import search
from aia_jax.report.figures import FALSE_ALARM, HIT
from aia_jax.report.search import KEYWORDS, VISUAL, SearchHit, draw_roc, draw_search
from aia_jax.report.search_page import write_search_page

GREEN = (10, 200, 30)
ODD = "<b>\"$x_1$\" & '日本'</b><script>alert(1)</script>"


def hit(shape=(30, 40), **changes):
    fields = {
        "image": np.full((*shape, 3), GREEN, np.uint8),
        "name": "a photo.jpg",
        "score": 0.5,
        "right": None,
        "attention": np.random.default_rng(0).random((3, 3)),
        "weights": (0.7, 0.3),
        "keywords": (("dog", 0.6), ("beach", 0.4)),
    }
    return SearchHit(**fields | changes)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def ink(image, color):
    return (image == np.round(np.array(to_rgb(color)) * 255)).all(-1)


def runs(flags):
    """Number of stretches of True."""
    return int((np.diff(flags.astype(int), prepend=0) == 1).sum())


@pytest.fixture
def written(monkeypatch):
    """Every text that is written on a page."""
    texts = []
    write = search.Page.write
    monkeypatch.setattr(
        search.Page,
        "write",
        lambda page, text, *place, **style: texts.append(text) or write(page, text, *place, **style),
    )
    return texts


class Elements(HTMLParser):
    """Tags with their attributes, and the text between them but for the style."""

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
    """Size of every picture, photo and overlay by turns, and its middle pixel."""
    found = []
    for attributes in page.named("img"):
        kind, _, content = attributes["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as picture:
            found.append((picture.size, picture.getpixel((picture.width // 2, picture.height // 2))))
    return found


@pytest.mark.parametrize(("counts", "columns", "rows"), [((1,), 1, 1), ((3, 2), 3, 2), ((10,), 5, 2), ((2, 0), 2, 1)])
def test_every_query_has_its_photos(tmp_path, counts, columns, rows):
    draw_search(tmp_path / "search.png", [("a dog", [hit()] * count) for count in counts], title="demo")
    image = pixels(tmp_path / "search.png")
    photos = (image == GREEN).all(-1)
    assert (runs(photos.any(0)), runs(photos.any(1))) == (columns, rows)
    assert 700 <= image.shape[1] <= 1440


def test_marks_are_there_where_they_are_known(tmp_path):
    images = []
    for right in (True, False, None):
        draw_search(tmp_path / "search.png", [("a dog", [hit(right=right)])])
        images.append(pixels(tmp_path / "search.png"))
    right, wrong, unknown = images
    assert ink(right, HIT.color).sum() > 4 * ink(wrong, HIT.color).sum() > 0
    assert ink(wrong, FALSE_ALARM.color).sum() > ink(right, FALSE_ALARM.color).sum() > 0
    assert not ink(unknown, HIT.color).any()
    assert not ink(unknown, FALSE_ALARM.color).any()


@pytest.mark.parametrize("visual", [0.0, 0.27, 0.645, np.float32(1)])
def test_the_bar_is_split_as_the_weights(tmp_path, visual):
    found = hit(weights=(visual, 1 - visual), keywords=())
    assert sum(map(float, found.split())) == 1
    draw_search(tmp_path / "search.png", [("a dog", [found])])
    image = pixels(tmp_path / "search.png")
    lengths = [ink(image[200:], color).sum(1).max() for color in (VISUAL, KEYWORDS)]
    assert lengths[0] / sum(lengths) == pytest.approx(visual, abs=0.03)


def test_the_photo_stands_above_its_attention(tmp_path):
    attention = np.zeros((1, 9))
    attention[0, 8] = 1
    draw_search(tmp_path / "search.png", [("a dog", [hit(attention=attention)])])
    assert [file.name for file in tmp_path.iterdir()] == ["search.png"]
    image = pixels(tmp_path / "search.png")
    rows, columns = (np.flatnonzero((image == GREEN).all(-1).any(axis)) for axis in (1, 0))
    below = image[rows[-1] + len(rows) // 2, columns].astype(int)
    assert np.ptp(below[len(columns) // 4]) == 0
    assert np.ptp(below[-8]) > 60
    np.testing.assert_array_equal(np.ptp(hit(attention=np.zeros((4, 6))).render(40, 30)[1], axis=-1), 0)
    assert np.ptp(hit(attention=np.ones((1, 1))).render(40, 30)[1], axis=-1).min() > 60


@pytest.mark.parametrize("shape", [(90, 30), (30, 90), (40, 40), (400, 4), (1, 1)])
def test_photos_keep_their_aspect(tmp_path, shape):
    draw_search(tmp_path / "search.png", [("a dog", [hit(shape)])])
    photos = (pixels(tmp_path / "search.png") == GREEN).all(-1)
    height, width = photos.any(1).sum(), photos.any(0).sum()
    assert max(height, width) < 190
    if min(shape) > 10:
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.1)


def test_keywords_stand_with_their_weights_and_end_in_a_count(tmp_path, written):
    many = tuple((f"word {k}", 0.1) for k in range(10))
    draw_search(tmp_path / "search.png", [("a dog", [hit(), hit(keywords=()), hit(keywords=many)]), ("a cat", [])])
    assert written.index("dog") + 1 == written.index("0.60")
    assert "no keywords" in written
    assert {"word 3", "+6 more", "nothing found"} <= set(written)
    assert "word 4" not in written


def test_odd_texts_are_drawn_on_the_page(tmp_path, written):
    odd = hit(name="", right=True, keywords=((ODD, 0.9), ("x" * 300, 0.1)))
    draw_search(tmp_path / "search.png", [(ODD * 20, [odd, hit(name="y" * 300)])], title=ODD * 20)
    image = pixels(tmp_path / "search.png")
    assert image.shape[1] < 900
    assert (image[:, -20:] == 255).all()
    assert any(text.startswith("“<b>") and text.endswith("…") for text in written)


def test_there_must_be_queries(tmp_path):
    with pytest.raises(ValueError, match="at least one query"):
        draw_search(tmp_path / "search.png", [])


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
        ({"weights": (1.5, -0.5)}, "two shares"),
        ({"weights": (1.0,)}, "two shares"),
    ],
)
def test_other_arrays_and_weights_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        hit(**changes)


CURVE = np.linspace(0, 1, 9)


def test_curves_lie_where_their_shares_are(tmp_path):
    best = (np.array([0, 0, 1]), np.array([0, 1, 1]), 1.0)
    draw_roc(tmp_path / "best.png", {"best": best})
    draw_roc(tmp_path / "worst.png", {"worst": (best[1], best[0], 0.0)})
    images = [ink(pixels(tmp_path / f"{name}.png"), HIT.color) for name in ("best", "worst")]
    for axis in (0, 1):  # the best goes up at the left and right at the top; rows count downwards
        best, worst = (image.sum(axis).argmax() for image in images)
        assert worst - best > 400


def test_areas_are_listed_from_the_highest(tmp_path, written):
    curves = {f"run {k}": (CURVE, CURVE**power, 1 / (1 + power)) for k, power in enumerate((0.8, 0.3, 0.5))}
    draw_roc(tmp_path / "roc.png", curves | {"x" * 300: (CURVE, CURVE, 0.5)}, published={"B": 0.627, "A": 0.673})
    listed = [text for text in written if text in curves or text in {"A", "B", "published, other data:", "chance"}]
    assert listed == ["run 1", "run 2", "run 0", "chance", "published, other data:", "A", "B"]
    assert {"0.769", "0.667", "0.556", "0.500", "0.673", "0.627"} <= set(written)
    draw_roc(tmp_path / "many.png", {f"$x_{k}$": (CURVE, CURVE, 0.5) for k in range(40)})
    few, many = pixels(tmp_path / "roc.png"), pixels(tmp_path / "many.png")
    assert len(few) < len(many)
    assert all((image[:, -20:] == 255).all() and (image[-10:] == 255).all() for image in (few, many))


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "at least one curve"),
        ({"a": (CURVE, CURVE[1:], 0.5)}, r"a: shares must be two \[P\].*\[9\] and \[8\]"),
        ({"a": (CURVE[:1], CURVE[:1], 0.5)}, "P > 1"),
        ({"a": (0.5, 0.5, 0.5)}, "P > 1"),
        ({"a": (CURVE, 100 * CURVE, 0.5)}, "a: shares must lie in 0..1"),
        ({"a": (CURVE, np.full(9, np.nan), 0.5)}, "0..1"),
    ],
)
def test_other_curves_are_refused(tmp_path, curves, message):
    with pytest.raises(ValueError, match=message):
        draw_roc(tmp_path / "roc.png", curves)
    assert not list(tmp_path.iterdir())


def test_a_page_shows_every_hit(tmp_path):
    page = write_page(tmp_path, "a dog", [hit(right=True), hit(right=False), hit(keywords=())], title="demo")
    assert len(page.named("article")) == 3
    assert [attributes["alt"] for attributes in page.named("img")][:2] == [
        "a photo.jpg",
        "a photo.jpg, bright where the search looks",
    ]
    for text in ("demo", "a dog", "1. score 0.50", "✓ hit", "✗ false alarm", "visual 0.70", "dog", "no keywords"):
        assert text in page.texts
    assert {"width:70.0%"} == {attributes["style"] for attributes in page.named("span") if "style" in attributes}
    assert [attributes["style"] for attributes in page.named("li")][:2] == ["--weight:1.000", "--weight:0.667"]


def test_a_page_shows_where_the_search_looks(tmp_path):
    page = write_page(tmp_path, "a dog", [hit(attention=np.zeros((2, 2)))] * 2)
    assert [attributes.get("id") for attributes in page.named("input")] == ["all", None, None]
    assert {attributes["for"] for attributes in page.named("label") if "for" in attributes} == {"all"}
    (size, photo), (same_size, heat) = pictures(page)[:2]
    assert size == same_size == (40, 30)
    np.testing.assert_allclose(photo, GREEN, atol=3)
    assert np.ptp(heat) <= 3


def test_a_page_needs_nothing_from_elsewhere(tmp_path):
    page = write_page(tmp_path, ODD, [hit(name=ODD, keywords=((ODD, 1.0),))], title=ODD)
    assert not {"script", "link", "iframe", "b", "a"} & {tag for tag, _ in page.tags}
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "url(" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.texts.count(ODD) == 4  # title, heading, name and keyword
    assert page.named("img")[0]["alt"] == ODD


@pytest.mark.parametrize(
    ("shape", "size"), [((480, 640), (320, 240)), ((900, 30), (21, 640)), ((30, 900), (320, 11)), ((1, 1), (1, 1))]
)
def test_thumbnails_are_small_and_keep_their_aspect(tmp_path, shape, size):
    assert [found for found, _ in pictures(write_page(tmp_path, "a dog", [hit(shape)]))] == [size, size]


def test_a_page_without_hits_says_so(tmp_path):
    assert write_page(tmp_path, "a dog", []).texts[-1] == "nothing found"


def test_a_page_takes_any_name_and_any_number_of_keywords(tmp_path):
    many = tuple((f"word {k}", 0.0) for k in range(30))
    page = write_page(tmp_path, "a\x00b\ud800c\n d", [hit(name="\udcff.jpg", keywords=many), hit(name="")])
    assert "a�b�c d" in page.texts
    assert page.named("img")[0]["alt"] == "�.jpg"
    assert page.named("img")[2]["alt"] == "photo 2"
    assert "+18 more" in page.texts
    assert "word 12" not in page.texts


def test_a_failed_write_keeps_the_old_page(tmp_path, monkeypatch):
    def full_disk(path, content):
        raise OSError("no space left on device")

    (tmp_path / "page.html").write_text("old")
    monkeypatch.setattr("aia_jax.utils.files.Path.write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_search_page(tmp_path / "page.html", "a dog", [hit()])
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("page.html", "old")]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onload='alert(1)",
        "</title></style><base href=//x>",
        "javascript:alert(1)",
        "<!--",
        "&lt;script&gt;&#60;b",
        "\ud800<b>\0\x1b[2J\r\n<i>",
    ],
)
def test_nothing_that_others_wrote_becomes_markup(tmp_path, text):
    def page(name):
        return write_page(tmp_path, name, [hit(name=name, keywords=((name, 0.6), ("dog", 0.4)))], title=name)

    plain, odd = page("plain"), page(text)
    shown = re.sub("[\x00-\x1f\ud800-\udfff]", "\ufffd", " ".join(text.split()))
    assert odd.texts.count(shown) >= 3
    assert odd.named("img")[0]["alt"] == shown
    assert [tag for tag, _ in odd.tags] == [tag for tag, _ in plain.tags]
    for (_, found), (_, expected) in zip(odd.tags, plain.tags, strict=True):
        assert found == {name: value.replace("plain", shown) for name, value in expected.items() if value} | {
            name: value for name, value in expected.items() if not value
        }
