import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import FontEntry, fontManager

from aia_jax.report import figures, predictions
from aia_jax.report.figures import plain, shorten
from aia_jax.report.page_parts import FALSE_ALARM, HIT, MISS
from aia_jax.report.predictions import draw_predictions
from tests.helpers.pictures import GREEN, count_runs, ink, pixels

MARKS = (HIT, MISS, FALSE_ALARM)


def green(count, height=12, width=12):
    return np.full((count, height, width, 3), GREEN, np.uint8)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (7, 4), (12, 6), (24, 8)])
def test_the_grid_fits_a_screen(drawn, count, columns):
    image = drawn(draw_predictions, green(count), [["sea"]] * count, [["sea"]] * count, title="demo")
    assert 500 <= image.shape[1] <= 1440
    photos = ink(image, GREEN)
    assert count_runs(photos.any(0)) == columns
    assert count_runs(photos.any(1)) == -(-count // columns)


@pytest.mark.parametrize(
    ("true", "predicted", "mark"), [(["sea"], ["sea"], HIT), (["sea"], [], MISS), ([], ["sea"], FALSE_ALARM)]
)
def test_hits_misses_and_false_alarms_have_their_own_colors_and_signs(drawn, true, predicted, mark):
    empty, one = drawn(draw_predictions, green(1), [[]], [[]]), drawn(draw_predictions, green(1), [true], [predicted])
    legend, image = ([ink(picture, each.color).sum() for each in MARKS] for picture in (empty, one))
    assert min(legend) > 0
    assert [each for each, before, now in zip(MARKS, legend, image, strict=True) if now > before] == [mark]
    assert plain("".join(mark.sign for mark in MARKS)) == "✓○✗"


def test_hits_come_before_missed_labels_and_false_alarms():
    words = predictions._marked_labels(["sea", "sky", "sun"], ["boat", "sun", "sea"])
    assert [text for text, _ in words] == ["✓ sun", "✓ sea", "○ sky", "✗ boat"]


def test_a_long_list_wraps_and_ends_in_a_count():
    words = predictions._set_words([(f"✓ label {k}", HIT.color) for k in range(40)], 2.0)
    assert {line for *_, line in words} == set(range(6))
    shown = len(words) - 1
    assert words[-1][0] == f"+{40 - shown} more"
    assert shown > 5
    assert [text for text, *_ in predictions._set_words([], 2.0)] == ["no labels"]


def test_unusual_characters_are_drawn_literally(drawn):
    odd = ["$x_1$", "100%", r"$\frac$", "a_b^c", "日本", "naïve", "tab\there", "two\nlines", "", "x" * 300]
    image = drawn(draw_predictions, green(2), [odd, []], [odd[:3], odd[4:]], title="$ _ % \\ 日本 " * 40)
    assert ink(image, HIT.color).any()
    assert plain("two\n$x_1$ naïve") == "two $x_1$ naïve"
    assert shorten("x" * 300, 1.0).endswith("x…")
    assert shorten("sea", 1.0) == "sea"


@pytest.fixture
def box_font(tmp_path_factory, monkeypatch):
    """Installs a font that has only the character 日, and removes the fonts of this computer except DejaVu Sans."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "box"])
    builder.setupCharacterMap({ord("日"): "box"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "box": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "box": (800, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path_factory.mktemp("fonts") / "boxes.ttf"
    builder.save(path)
    fonts = [font for font in fontManager.ttflist if font.name == "DejaVu Sans"]
    removed = FontEntry(fname=str(path.with_name("removed.ttf")), name="Removed")
    monkeypatch.setattr(fontManager, "ttflist", [removed, *fonts])
    fontManager.addfont(path)
    figures._family_of.cache_clear()
    yield
    figures._family_of.cache_clear()


def test_a_character_is_drawn_with_an_installed_font_or_named(drawn, box_font, capsys):
    assert plain("日本") == "日□"
    few, many = (drawn(draw_predictions, green(1), [["日" * count]], [["日" * count]]) for count in (1, 5))
    assert ink(many, HIT.color).sum() - ink(few, HIT.color).sum() > 4 * 50  # filled squares of 8 x 8 pixels
    assert not capsys.readouterr().out
    drawn(draw_predictions, green(1), [["日本"]], [[]])
    assert capsys.readouterr().out == "picture.png shows □ for characters such as 本; install a font that has them\n"


def test_photos_keep_their_aspect(drawn):
    photos = ink(drawn(draw_predictions, green(2, 10, 40), [["a"], []], [[], ["b"]]), GREEN)
    assert photos.any(0).sum() / 2 == pytest.approx(4 * photos.any(1).sum(), rel=0.05)


def test_an_old_picture_is_replaced_only_by_a_complete_one(drawn, tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    before = drawn(draw_predictions, green(1), [["a"]], [["a"]])

    def fail(figure, file, **_):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("aia_jax.report.figures.Figure.savefig", fail)
    with pytest.raises(OSError, match="no space"):
        drawn(draw_predictions, green(2), [["a"]] * 2, [["a"]] * 2)
    np.testing.assert_array_equal(pixels(path), before)
    assert list(tmp_path.iterdir()) == [path]
