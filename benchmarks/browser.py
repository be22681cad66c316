"""A headless Chromium or Chrome, if one is installed."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_QUIET = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
_FLAGS = f"{_QUIET} disable-component-update disable-sync hide-scrollbars"


class NoBrowserError(RuntimeError):
    """The browser, its driver or Selenium is missing; the message says how to install it."""


@contextlib.contextmanager
def browser(page_load_strategy: str = "normal") -> Iterator[Any]:
    """Yields a Selenium driver with a new profile and a window of 1,280 x 900 pixels.

    Args:
        page_load_strategy: "normal" waits until a page is loaded; "none" does not wait.

    Raises:
        NoBrowserError: no browser is installed.
    """
    try:
        from selenium import webdriver
    except ImportError:
        raise NoBrowserError("Selenium is missing: pip install selenium") from None
    binary = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        raise NoBrowserError("Chromium is missing: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.page_load_strategy = page_load_strategy
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS.split(), f"user-data-dir={profile}", "window-size=1280,900"):
            options.add_argument(f"--{flag}")
        started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield started
        finally:
            started.quit()
