"""The gallery page in a real browser: search, filters, photos, attention; text from users never runs."""

import base64
import io
import re
import time
import unicodedata

import numpy as np
import pytest
from PIL import Image

from aia_jax.data.image_decoding import encode_webp
from aia_jax.report.figures import upsample
from aia_jax.report.gallery.writer import PageLabel, PagePhoto, encode_scores, write_gallery_page
from aia_jax.report.page_parts import content_hash, folder_url
from tests.helpers.gallery_page import read_page

HOSTILE = [
    "<script>alert(1)</script>",
    '</script><script>window.ran = "label"</script>',
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
]
LABELS = [*HOSTILE, "sea", "sky", "sand"]
NAMES = [
    "\"q\", 'x' & <b>.jpg",
    "line\nbreak\ttab.jpg",
    "سیب 🍎 日本.jpg",
    "\udcff\udcfe.jpg",
    "gpj.\u202ethgir.jpg",
    '<img src=x onerror="window.ran=1">.jpg',
    "</script><script>window.ran=2</script>.jpg",
    "a  photo of spaces.jpg",
]
SHOWN = {
    NAMES[1]: "line\\nbreak\\ttab.jpg",
    NAMES[3]: "\\udcff\\udcfe.jpg",
    NAMES[4]: "gpj.\\u202ethgir.jpg",
}
WEBP = encode_webp(np.full((30, 40, 3), (10, 120, 200), np.uint8))


@pytest.fixture
def page(chrome, tmp_path):
    """Writes a page and opens it; the page must not log an error."""

    def open_page(photos, address="", **facts):
        path = write(tmp_path / "page.html", photos, **facts)
        emulate(chrome)
        chrome.get("about:blank")
        chrome.get(f"{path.as_uri()}{address}")
        return chrome

    yield open_page
    assert not chrome.execute_script("return window.ran")
    assert [entry for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"] == []


def write(path, photos, **facts):
    rows = (
        PagePhoto(name, [PageLabel(*label) for label in labels], b"" if maps is None else WEBP, maps or {})
        for name, labels, maps in photos
    )
    write_gallery_page(path, rows, title="photos", **{"labels": LABELS} | facts)
    return path


def emulate(driver, *, width=1280, height=900, dark=False):
    """Sets the size of the window in CSS pixels (a narrow window is a phone) and its colour scheme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def texts(driver, selector):
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


def click(driver, selector):
    driver.find_element("css selector", selector).click()


def press(driver, *keys):
    for key in keys:
        driver.switch_to.active_element.send_keys(key)


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def scored_photos(count=40):
    """Photo i has the label sea with the score i / count, and every fourth photo also sky."""
    heat = np.zeros((3, 5), np.uint8)
    heat[0, 4] = 255
    for number in range(count):
        labels = [(4, number / count)] + [(5, 0.9)] * (number % 4 == 0)
        yield f"{number}.jpg", sorted(labels, key=lambda label: -label[1]), {4: heat, 5: heat[::-1].copy()}


def test_text_from_users_is_shown_and_never_runs(page, tmp_path):
    photos = [(name, [(label, 0.9 - label / 10) for label in range(4)], {}) for name in NAMES]
    problems = [(name, "<b>torn</b>") for name in NAMES]
    driver = page(photos, problems=problems, subtitle="<script>alert(2)</script>")
    assert sorted(texts(driver, ".card .name")) == sorted(SHOWN.get(name, name) for name in NAMES)
    assert texts(driver, ".card .chip bdi")[:4] == HOSTILE
    assert sorted(texts(driver, "#label-list bdi")) == sorted(HOSTILE)
    click(driver, "#tab-problems")
    assert texts(driver, ".problems li > bdi") == [SHOWN.get(name, name) for name in NAMES]
    click(driver, "#tab-photos")
    driver.find_element("id", "query").send_keys('onerror="window')
    assert texts(driver, ".card .name") == [NAMES[5]]
    click(driver, ".card button")
    assert texts(driver, "#detail-name") == [NAMES[5]]
    assert texts(driver, "#detail-labels bdi") == HOSTILE
    assert driver.execute_script("return document.querySelectorAll('script:not([type])').length") == 1
    assert list(read_page(tmp_path / "page.html")[1]) == NAMES


def test_the_search_finds_photos_by_name_label_and_score(page):
    driver = page(scored_photos())
    assert texts(driver, "#count") == ["40 photos"]
    assert texts(driver, ".card .name")[:3] == ["0.jpg", "1.jpg", "2.jpg"]
    press(driver, "/")
    press(driver, "SKY")
    assert texts(driver, "#count") == ["10 of 40 photos"]
    press(driver, " 12.j")
    assert texts(driver, ".card .name") == ["12.jpg"]
    click(driver, ".clear")
    click(driver, '#label-list [data-label="4"]')
    driver.execute_script(
        "const tool = document.querySelector('#minimum');"
        "tool.value = 0.9; tool.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert texts(driver, "#count") == ["4 of 40 photos"]
    assert texts(driver, "#label-list .number") == ["4", "1"]
    driver.find_element("id", "sort").send_keys("highest")
    assert texts(driver, ".card .name") == ["39.jpg", "38.jpg", "37.jpg", "36.jpg"]
    assert texts(driver, ".card:last-child .chip") == ["sea0.90", "sky0.90"]
    wait_for(lambda: "sort=high" in driver.current_url)
    driver.refresh()  # the address keeps the state
    assert texts(driver, ".card .name") == ["39.jpg", "38.jpg", "37.jpg", "36.jpg"]
    driver.find_element("id", "query").send_keys("nowhere")
    assert driver.find_element("id", "none").text.startswith("No photo matches. Remove a filter:")
    click(driver, "#none [aria-label='Remove “nowhere”']")
    assert len(texts(driver, ".card")) == 4
    click(driver, "#chosen .clear")
    assert texts(driver, "#count") == ["40 photos"]


def test_a_sentence_ranks_the_photos_and_a_label_filters_them(page):
    scores = {"A red\u202e dog": [number / 100 for number in range(40)], "<b>sea</b>": [None, -0.5] + [0.0] * 38}
    queries = [(sentence, encode_scores(values)) for sentence, values in scores.items()]
    driver = page(scored_photos(), queries=queries)
    offered = "return [...document.querySelector('#query').list.options].map(option => option.value)"
    assert driver.execute_script(offered) == ["A red\\u202e dog", "<b>sea</b>"]
    driver.find_element("id", "query").send_keys("a red\\u202e  DÓG ")
    assert texts(driver, "#count") == ["40 photos"]
    assert texts(driver, ".card .name")[:2] == ["39.jpg", "38.jpg"]
    assert texts(driver, ".card .match")[:2] == ["match 0.390", "match 0.380"]
    assert not driver.find_element("id", "sort").is_enabled()
    click(driver, '#label-list [data-label="5"]')
    assert texts(driver, ".card .name") == [f"{number}.jpg" for number in range(36, -1, -4)]
    wait_for(lambda: all(part in driver.current_url for part in ("q=a+red", "labels=5")))
    driver.refresh()  # the address keeps the state
    click(driver, ".card button")
    assert texts(driver, "#detail-place") == ["1 of 10 · match 0.360"]
    driver = page(scored_photos(), "#q=<b>sea</b>", queries=queries)
    assert texts(driver, "#count") == ["39 of 40 photos"]  # a photo without a score is left out
    click(driver, "#chosen .clear")
    assert texts(driver, ".card .match") == []
    assert driver.find_element("id", "sort").get_property("value") == "name"


def test_a_photo_shows_the_attention_of_each_label(page):
    driver = page(scored_photos(), "#q=12.jpg+sky")
    click(driver, ".card button")
    wait_for(lambda: driver.execute_script("return document.querySelector('#photo').naturalWidth") == 40)
    assert texts(driver, "#detail-labels bdi") == ["sky", "sea"]
    opacity = "return Number(document.querySelector('#heat').style.opacity)"
    assert driver.execute_script(opacity) == 0
    click(driver, '#detail-labels [data-label="4"]')
    assert driver.execute_script(opacity) == 1
    drawn = base64.b64decode(driver.execute_script("return document.querySelector('#map').toDataURL()").split(",")[1])
    alpha = np.asarray(Image.open(io.BytesIO(drawn)))[..., 3] / 255
    heat = np.zeros((3, 5), np.float32)
    heat[0, 4] = 1
    np.testing.assert_allclose(alpha, 0.85 * upsample(heat, alpha.shape) ** 0.8, atol=0.02)
    press(driver, "\ue013")  # Up
    assert driver.find_element("css selector", "[aria-pressed=true][data-label]").text.startswith("sky")
    click(driver, '#detail-labels [data-label="5"]')
    assert driver.execute_script(opacity) == 0


def test_a_phone_shows_the_full_name_above_many_labels(page):
    driver = page([("many.jpg", [(number, 0.9, None) for number in range(len(LABELS))] * 4, {})])
    emulate(driver, width=390, height=844)
    click(driver, ".card button")
    name = driver.find_element("id", "detail-name")
    assert name.get_property("clientHeight") >= name.get_property("scrollHeight")


def test_everything_works_by_keyboard(page):
    driver = page(scored_photos(2000))
    assert len(texts(driver, ".card")) < 100
    driver.execute_script("document.querySelector('.card button').focus()")
    press(driver, "\ue014", "\ue010", "\ue012", "\ue007")  # Right, End, Left, Enter
    assert texts(driver, "#detail-name") == ["1998.jpg"]
    press(driver, "\ue014", "\ue014")
    assert texts(driver, "#detail-name") == ["1999.jpg"]  # the last
    wait_for(lambda: "photo=1999" in driver.current_url)
    press(driver, "\ue00c")  # Escape
    wait_for(lambda: "photo" not in driver.current_url)
    assert driver.switch_to.active_element.get_attribute("title") == "1999.jpg"
    assert len(texts(driver, ".card")) < 100


def test_photos_without_maps_have_no_buttons_and_photos_without_pictures_say_so(page):
    driver = page(((name, labels, {}) for name, labels, _ in scored_photos()), "#photo=4")
    wait_for(lambda: driver.execute_script("return document.querySelector('#photo').naturalWidth") == 40)
    assert texts(driver, "#detail-labels bdi") == ["sky", "sea"]
    assert not driver.find_elements("css selector", "#detail-labels button")
    assert not driver.find_element("id", "opacity").is_displayed()
    driver = page([])
    assert driver.find_element("id", "none").text == "No photo could be read."
    driver = page([("gone.jpg", [], None)])
    wait_for(lambda: texts(driver, ".card .picture") == ["no picture"])
    assert texts(driver, ".card .chips") == ["no labels"]
    click(driver, ".card button")
    assert driver.find_element("id", "photo").get_attribute("alt") == "no picture"


@pytest.mark.parametrize("part", ["photos", "labels", "confusions", "problems"])
def test_the_page_fits_a_phone_and_has_a_dark_mode(page, part):
    driver = page(evaluated_photos(), f"#part={part}", evaluation=EVALUATION, problems=[("x" * 200, "torn")])
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    for width in (1280, 360):
        emulate(driver, width=width, height=740, dark=True)
        wait_for(lambda: driver.execute_script(wide) == 0)
        assert texts(driver, f"#part-{part}")[0].strip()
    color = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", color))) < 50


def metrics_of(support, predicted, tp, f1, ap):
    counts = {"support": support, "predicted": predicted, "tp": tp, "threshold": 0.5}
    return counts | {"precision": tp / predicted, "recall": tp / support, "f1": f1, "ap": ap}


EVALUATION = {
    "metrics": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "n_plus": 2, "num_labels": 3, "map": 61.5},
    "per_label": [metrics_of(9, 10, 3, 0.3, 0.7), metrics_of(30, 5, 5, 0.9, 0.2), metrics_of(12, 10, 9, 0.1, 0.5)],
    "curves": {
        "micro": [[0.5, 1.0], [1.0, 0.5]],
        "micro_ap": 0.75,
        "labels": [[[1.0, 0.5]], [], [[0.5, 0.9], [1, 0.2]]],
    },
    "confusions": {
        "pairs": [[0, 2, 3], [1, 2, 1]],
        "missed": [6, 25, 3],
    },
}


def evaluated_photos():
    """Ten photos: three miss the label <script> and have the false alarm </script>, and one has no hit."""
    for number in range(10):
        labels = [(4, 0.9, "hit"), (5, 0.8, "hit")]
        if number in (3, 5, 7):
            labels = [(4, 0.9, "hit"), (0, 0.2, "miss"), (2, 0.7, "false")]
        if number == 6:
            labels = [(5, 0.4, "miss")]
        yield f"{number}.jpg", labels, {}


def test_the_worst_photos_come_first_and_errors_have_marks(page):
    driver = page(evaluated_photos(), evaluation=EVALUATION)
    assert texts(driver, ".card .name")[:5] == ["6.jpg", "3.jpg", "5.jpg", "7.jpg", "0.jpg"]
    assert texts(driver, ".card:nth-child(2) .chip") == [f"○{HOSTILE[0]}", f"✗{HOSTILE[2]}0.70", "✓sea0.90"]
    driver.find_element("id", "outcome").send_keys("without errors")
    assert texts(driver, "#count") == ["6 of 10 photos"]


def test_labels_are_sorted_by_mouse_and_keyboard(page):
    driver = page(evaluated_photos(), "#part=labels", evaluation=EVALUATION, labels=LABELS[:6])
    assert texts(driver, ".tiles dd") == ["0.5000", "0.2500", "0.3333", "2 of 3", "61.50"]
    support = "#part-labels td:nth-child(2)"
    assert texts(driver, support) == ["30", "12", "9"]
    click(driver, "#part-labels th:nth-child(7) button")
    assert texts(driver, "#part-labels td:nth-child(7)") == ["0.700", "0.500", "0.200"]
    press(driver, "\ue007")
    assert texts(driver, "#part-labels td:nth-child(7)") == ["0.200", "0.500", "0.700"]
    assert driver.find_element("css selector", "[aria-sort=ascending]").text.startswith("AP")
    click(driver, "#part-labels tbody tr:nth-child(2) button")
    points = "return document.querySelector('polyline.chosen').getAttribute('points').split(' ').length"
    assert driver.execute_script(points) == 3
    assert "AP 0.500" in texts(driver, ".legend .chosen")[0]


def test_confusions_link_to_their_photos(page):
    driver = page(evaluated_photos(), "#part=confusions", evaluation=EVALUATION)
    assert texts(driver, "#part-confusions tbody tr:first-child td") == [HOSTILE[0], HOSTILE[2], "3", "50 %"]
    click(driver, "#part-confusions tbody button")
    assert texts(driver, ".card .name") == ["3.jpg", "5.jpg", "7.jpg"]


def test_the_policy_allows_only_the_own_script_and_loads_nothing(tmp_path):
    text = write(tmp_path / "page.html", scored_photos()).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert f"script-src {content_hash(script)};" in policy
    assert f"style-src {content_hash(style)};" in policy
    assert "default-src 'none'; img-src data:;" in policy
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", text)


def test_a_page_whose_script_is_blocked_says_so(chrome, page, tmp_path):
    page(scored_photos())
    assert not texts(chrome, "#starting")
    path = tmp_path / "page.html"
    path.write_text(re.sub("script-src '[^']*'", "script-src 'none'", path.read_text()))
    chrome.get("about:blank")
    chrome.get(path.as_uri())
    assert "JavaScript is blocked here: download the page" in chrome.find_element("id", "starting").text
    assert "script-src" in chrome.get_log("browser")[0]["message"]


def test_a_printed_page_has_all_photos(page):
    driver = page(scored_photos(120))
    assert len(texts(driver, ".card")) < 100
    driver.execute_cdp_cmd("Page.printToPDF", {})
    assert len(texts(driver, ".card")) == 120


def test_an_interrupted_write_keeps_the_old_page(tmp_path):
    path = write(tmp_path / "page.html", scored_photos())
    before = path.read_bytes()

    def interrupted_photos():
        yield "a.jpg", [], {}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, interrupted_photos())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_card_counts_the_labels_that_it_does_not_show_and_shows_the_end_of_the_name(page):
    labels = [f"a rather long label {number}" for number in range(300)]
    name = "2019/holiday/" + "y" * 80 + "IMG_0042.jpeg"
    driver = page(
        [(name, [(number, 0.9, None) for number in range(300)], {}), ("b.jpg", [(0, 0.9)], {})], labels=labels
    )
    for width in (1280, 390):
        emulate(driver, width=width)
        wait_for(lambda: driver.find_elements("css selector", ".card"))
        shown, more = driver.execute_script(
            "const bottom = (part) => part.getBoundingClientRect().bottom, card = document.querySelector('.card');"
            "const end = bottom(card.querySelector('.chips')) + 1, chips = [...card.querySelectorAll('.chip')];"
            "const shown = chips.filter(chip => chip.checkVisibility() && bottom(chip) <= end);"
            "return [shown.length, card.querySelector('.more').innerText]"
        )
        assert more == f"+{300 - shown} more"
        end = driver.find_element("css selector", ".card .name span + span")
        assert end.text == "IMG_0042.jpeg"
        assert end.get_property("scrollWidth") <= end.get_property("clientWidth")
    assert texts(driver, ".card .name") == [name, "b.jpg"]
    assert driver.find_element("css selector", ".card button").get_attribute("title") == name
    assert not driver.find_elements("css selector", ".card:last-child .more:not([hidden])")


def test_the_search_folds_case_and_accents(page):
    written = [
        "Zu\u0308rich.jpg",
        "Hauptstraße.jpg",
        "İstanbul \u0131ş\u0131k.jpg",
        "Łódź Øresund.jpg",
        "ΟΔΌΣ.jpg",
        "が.jpg",
    ]
    driver = page([(name, [], {}) for name in written])
    for query, names in (
        ("zurich", ["Zürich.jpg"]),
        ("ZÜRICH", ["Zürich.jpg"]),
        ("Zu\u0308rich", ["Zürich.jpg"]),
        ("strasse", ["Hauptstraße.jpg"]),
        ("istanbul ISIK", ["İstanbul \u0131ş\u0131k.jpg"]),
        ("lodz oresund", ["Łódź Øresund.jpg"]),
        ("οδος", ["ΟΔΌΣ.jpg"]),
        ("が", ["が.jpg"]),
        ("か", []),
    ):
        driver.find_element("id", "query").clear()
        driver.find_element("id", "query").send_keys(query)
        found = [unicodedata.normalize("NFC", name) for name in texts(driver, ".card .name")]
        assert found == names, query


def test_the_slider_starts_at_the_lowest_score(page):
    photos = [("a.jpg", [(4, 0.2913, "hit"), (5, 0.01, "miss")], {}), ("b.jpg", [], {})]
    driver = page(photos)
    slider = driver.find_element("id", "minimum")
    assert (slider.get_attribute("min"), slider.get_attribute("value")) == ("0.29", "0.29")
    assert texts(driver, "#count") == ["2 photos"]
    assert not texts(driver, "#chosen li")


def test_a_photo_fills_the_window_and_links_to_its_file(page, tmp_path):
    (tmp_path / "my photos").mkdir()
    folder = folder_url(tmp_path / "my photos", tmp_path / "page.html")
    driver = page([("a b/#1?.jpg", [], {}), ("z\udcff.jpg", [], {})], "#photo=0", folder=folder)
    wait_for(lambda: driver.execute_script("return document.querySelector('#photo').naturalWidth") == 40)
    link = driver.find_element("id", "original")
    assert link.get_attribute("href") == (tmp_path / "my photos" / "a b" / "#1?.jpg").as_uri()
    click(driver, "#enlarge")
    width = "return document.querySelector('#frame').clientWidth / innerWidth"
    wait_for(lambda: driver.execute_script(width) > 0.9)
    click(driver, "#frame")
    wait_for(lambda: driver.execute_script(width) < 0.7)
    press(driver, "\ue014")
    assert not link.is_displayed()
    click(driver, "#enlarge")
    assert driver.find_element("id", "enlarge").text == "\u2212"
    press(driver, "\ue00c")  # Escape
    click(driver, ".card button")
    wait_for(lambda: 0 < driver.execute_script(width) < 0.7)


def test_labels_without_a_photo_are_counted_beside_the_means_and_terms_are_explained(page):
    tested = {"precision": 0.75, "recall": 0.375, "f1": 0.5, "n_plus": 2, "num_labels": 2, "map": 92.25}
    driver = page(
        evaluated_photos(), "#part=labels", evaluation=EVALUATION | {"with_photos": tested}, labels=LABELS[:6]
    )
    assert texts(driver, ".tiles dd") == ["0.7500", "0.3750", "0.5000", "2 of 2", "92.25"]
    note = "1 label without a photo in this split: left out of these means. With them: P 0.5000, R 0.2500, F1 0.3333"
    assert texts(driver, "#untested")[0].startswith(note)
    terms = driver.find_element("css selector", "details dl")
    assert not terms.is_displayed()
    driver.execute_script("document.querySelector('summary').focus()")
    press(driver, "\ue007")
    assert all(text in terms.text for text in ("N+", "support", "weights"))


def test_filters_fold_away_on_a_phone(page):
    driver = page(scored_photos())
    emulate(driver, width=390, height=844)
    slider, labels = driver.find_element("id", "minimum"), driver.find_element("id", "labels")
    assert not slider.is_displayed()
    assert not labels.is_displayed()
    click(driver, "#filters-toggle")
    assert slider.is_displayed()
    click(driver, '#label-list [data-label="4"]')
    assert driver.find_element("id", "filters-toggle").text == "Filters (1)"
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert driver.execute_script(wide) == 0
