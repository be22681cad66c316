import pytest

from aia_jax.report.figures import Page


@pytest.fixture
def written(monkeypatch):
    """All texts that are written on a page."""
    texts = []
    write = Page.write
    monkeypatch.setattr(
        Page, "write", lambda page, text, *place, **style: texts.append(text) or write(page, text, *place, **style)
    )
    return texts
