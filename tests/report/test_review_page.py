"""The page of `aia review` in a real browser, with a session in memory behind the real server."""

import pytest

from aia_jax.inference.review.requests import ReviewRequests
from aia_jax.inference.review.server import ReviewServer
from tests.helpers.fake_review import FakeSession
from tests.report.test_gallery import HOSTILE, click, emulate, texts, wait_for

ENTER, ESCAPE, DOWN = "\ue007", "\ue00c", "\ue015"


@pytest.fixture
def session():
    session = FakeSession(num_photos=300, labels=(*HOSTILE, "sea", "sky", "dog"))
    session.names = ("<img src=x onerror='window.ran=1'>.jpg", *session.names[1:])
    session.trained.set()
    return session


@pytest.fixture
def page(chrome, session):
    """The page in a window; it must run no text of users, and log no error but those of refused requests."""
    session.requests = requests = ReviewRequests(session, "<b>photos</b>")
    requests.load()
    with ReviewServer(requests) as server:
        emulate(chrome)
        chrome.get(server.url)
        wait_for(lambda: texts(chrome, ".card .label-row"))
        yield chrome
        assert not chrome.execute_script("return window.ran")
        logged = [entry["message"] for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"]
        assert [message for message in logged if "Failed to load resource" not in message] == []
        chrome.get("about:blank")


def press(driver, *keys):
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(driver, 0).send_keys(key).perform()


def first_card(driver):
    return int(driver.execute_script("return document.querySelector('.card').dataset.number"))


def answers_of(session, number):
    return session.answers.get(session.names[number], {})


def test_labels_are_rejected_confirmed_and_added_by_click_and_by_key(page, session):
    number, labels = first_card(page), session.labels
    assert number == session.order()[0]
    assert texts(page, "#title") == ["<b>photos</b>"]
    shown = texts(page, "#grid .card:first-child .label-row bdi")
    button = page.find_element("css selector", "#grid .card:first-child .tick.no")
    button.click()
    wait_for(lambda: answers_of(session, number) == {shown[0]: False})
    wait_for(lambda: page.find_elements("css selector", ".card:first-child .label-row.no .tick[aria-pressed=true]"))
    button.click()  # the same button, which stays in the document, takes the answer back
    wait_for(lambda: answers_of(session, number) == {})
    click(page, ".card .open")
    wait_for(lambda: page.find_elements("css selector", "#detail-labels .current"))
    press(page, "y", "n", "x", ENTER)
    wait_for(lambda: len(answers_of(session, number)) == 4)
    assert list(answers_of(session, number).items()) == list(zip(shown, (True, False, False, True), strict=False))
    press(page, "u")
    wait_for(lambda: len(answers_of(session, number)) == 3)
    press(page, "a", *"dusk", ENTER)
    assert "dusk" not in session.labels
    assert texts(page, ".chooser [aria-selected=true] small") == ["new: Enter again adds it"]
    press(page, ENTER)
    wait_for(lambda: answers_of(session, number).get("dusk"))
    assert session.labels == (*labels, "dusk")
    press(page, "a", *"DOG", ENTER)  # completes a known label
    wait_for(lambda: answers_of(session, number).get("dog"))
    assert session.labels == (*labels, "dusk")
    session.disk_full = True
    press(page, "y")
    wait_for(lambda: len(texts(page, "#detail .message.error")) == 1)
    click(page, ".message.error button")
    assert not texts(page, ".message.error")
    session.disk_full = False
    press(page, "j")
    wait_for(lambda: texts(page, "#detail-place") == ["2 of 300"])
    press(page, "k", ESCAPE)
    wait_for(lambda: not page.execute_script("return document.querySelector('#detail').open"))
    assert page.execute_script("return document.activeElement.closest('.card').dataset.number") == str(number)


def test_names_with_invisible_marks_are_sent_as_they_are(page, session):
    session.labels = (*session.labels[:-1], "سیب\u200f")
    page.refresh()
    wait_for(lambda: texts(page, ".card .label-row"))
    page.find_element("css selector", "#label option[value='سیب\\\\u200f']").click()
    wait_for(lambda: texts(page, ".card:first-child .label-row:first-child bdi") == ["سیب\\u200f"])
    click(page, ".card .tick.yes")
    wait_for(lambda: session.answers)
    assert list(session.answers.values()) == [{"سیب\u200f": True}]


def test_several_photos_get_one_answer_and_a_failed_write_says_so(page, session):
    numbers = [
        int(number)
        for number in page.execute_script("return [...document.querySelectorAll('.card')].map(c => c.dataset.number)")
    ]
    click(page, ".card:nth-child(1) .pick input")
    page.execute_script(
        "document.querySelector('.card:nth-child(3) .open').dispatchEvent("
        "new MouseEvent('click', {shiftKey: true, bubbles: true}))"
    )
    assert texts(page, "#selection-count") == ["3 photos selected"]
    page.find_element("css selector", "#selection input").send_keys("se", ENTER)
    session.disk_full = True
    click(page, "#selection-yes")
    wait_for(
        lambda: texts(page, ".message.error p") == ["Not saved. the disk of review is full: the answer is not stored"]
    )
    assert texts(page, ".label-row.yes") == []
    assert texts(page, "#selection-count") == ["3 photos selected"]
    session.disk_full = False
    click(page, ".message.error button")
    click(page, "#selection-yes")
    wait_for(lambda: len(session.answers) == 3)
    assert all(answers_of(session, number) == {"sea": True} for number in numbers[:3])
    wait_for(lambda: not page.find_element("id", "selection").is_displayed())
    wait_for(lambda: texts(page, "#progress-text") == ["3 of 300 photos answered · 3 answers"])


def test_a_training_shows_what_changed_and_the_new_order(page, session):
    click(page, ".card .tick.yes")
    wait_for(lambda: session.answers)
    before = first_card(page)
    click(page, "#train")
    wait_for(lambda: page.find_element("id", "report").is_displayed())
    assert texts(page, "#report .changes bdi") == ["sea", "<b>sky</b>"]
    assert texts(page, "#report tbody tr:first-child td")[:4] == ["mAP", "40.00", "42.50", "+2.50"]
    click(page, "#report .act.shut")
    assert first_card(page) in (before, session.order()[0])
    page.refresh()
    wait_for(lambda: texts(page, ".card .label-row"))
    assert first_card(page) == session.order()[0]
    assert texts(page, "#progress-text") == ["1 of 300 photos answered · 1 answer, 0 new"]


def test_answers_of_another_page_are_shown(page, session):
    number = first_card(page)
    label = texts(page, ".card:first-child .label-row bdi")[1]
    session.requests.answer([number], label, False)
    page.execute_script("document.dispatchEvent(new Event('visibilitychange', {bubbles: true}))")
    wait_for(lambda: texts(page, ".card:first-child .label-row.no bdi") == [label])
    assert texts(page, "#progress-text") == ["1 of 300 photos answered · 1 answer"]
    click(page, ".card .open")
    wait_for(lambda: texts(page, "#detail-labels .label-row.no bdi") == [label])
    session.requests.undo()
    page.execute_script("document.dispatchEvent(new Event('visibilitychange', {bubbles: true}))")
    wait_for(lambda: texts(page, "#detail-labels .label-row") and not texts(page, "#detail-labels .label-row.no"))
    session.requests.answer([number], label, False)
    click(page, "#detail-undo")
    wait_for(lambda: not session.answers)
    wait_for(lambda: not page.find_elements("css selector", ".label-row.no"))


def test_the_document_has_few_cards_and_a_phone_has_large_targets(page, session):
    page.execute_script("scrollTo(0, document.documentElement.scrollHeight)")
    wait_for(lambda: page.find_elements("css selector", ".card[aria-posinset='300'] .label-row"))
    assert len(texts(page, ".card")) < 60
    emulate(page, width=390, height=844)
    page.refresh()
    wait_for(lambda: texts(page, ".card .label-row"))
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.execute_script(wide) == 0
    boxes = "[...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect())"
    sizes = f"return {boxes}.map(r => [r.width, r.height])"
    for selector in (".tick", ".act", ".tools select", ".pick", ".more button"):
        found = [size for size in page.execute_script(sizes, selector) if size[0]]
        assert found
        assert min(min(size) for size in found) >= 44, selector
