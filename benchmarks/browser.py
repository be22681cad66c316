"""A headless Chromium or Chrome, where there is one."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_QUIET = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
_FLAGS = f"{_QUIET} disable-component-update disable-sync hide-scrollbars"


class NoBrowserError(RuntimeError):
    """Browser, driver or Selenium is absent; the message says how to get it."""


@contextlib.contextmanager
def browser(page_load_strategy: str = "normal") -> Iterator[Any]:
    """A Selenium driver of a fresh profile, its window 1,280 x 900 pixels.

    Args:
        page_load_strategy: "normal": opening a page waits for all of it; "none": for nothing.

    Raises:
        NoBrowserError: there is none.
    """
    try:
        from selenium import webdriver
    except ImportError:
        raise NoBrowserError("pages are opened by Selenium: pip install selenium") from None
    binary = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        raise NoBrowserError("pages are opened in Chromium: apt-get install chromium chromium-driver")
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
