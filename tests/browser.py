"""A headless Chromium or Chrome, where there is one."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_QUIET = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
_FLAGS = f"{_QUIET} disable-component-update disable-sync hide-scrollbars"


@contextlib.contextmanager
def browser() -> Iterator:
    """A Selenium driver of a fresh profile; skips the test without browser, driver or Selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pages are tried by Selenium: pip install '.[test]'")
    binary = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("pages are tried in Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS.split(), f"user-data-dir={profile}", "window-size=1280,900"):
            options.add_argument(f"--{flag}")
        started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield started
        finally:
            started.quit()


def emulate(driver, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    """A window of this many CSS pixels, a phone if it is narrow."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
