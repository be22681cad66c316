import contextlib

import pytest

from aia_jax.report.figures import Page
from benchmarks.browser import NoBrowserError, browser
from tests.helpers.pictures import pixels


@pytest.fixture(scope="session")
def chrome():
    """The driver of a browser. Skips the test if there is no browser."""
    with contextlib.ExitStack() as opened:
        try:
            driver = opened.enter_context(browser())
        except NoBrowserError as error:
            pytest.skip(str(error))
        yield driver


@pytest.fixture
def drawn(tmp_path):
    """Calls a function that draws a picture, and returns the pixels. The picture is small and the only file."""

    def draw(function, *arguments, **options):
        path = tmp_path / "picture.png"
        function(path, *arguments, **options)
        assert list(tmp_path.iterdir()) == [path]
        assert path.stat().st_size < 1_500_000
        return pixels(path)

    return draw


@pytest.fixture
def written(monkeypatch):
    """All texts that are written on a page."""
    texts = []
    write = Page.write
    monkeypatch.setattr(
        Page, "write", lambda page, text, *place, **style: texts.append(text) or write(page, text, *place, **style)
    )
    return texts
