"""A browser for tests of pages."""

import contextlib
from collections.abc import Iterator

import pytest

from benchmarks import browser as benchmarks


@contextlib.contextmanager
def browser() -> Iterator:
    """Opens a browser; skips the test if there is none. See `benchmarks.browser`."""
    with contextlib.ExitStack() as opened:
        try:
            driver = opened.enter_context(benchmarks.browser())
        except benchmarks.NoBrowserError as error:
            pytest.skip(str(error))
        yield driver


def emulate(driver, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    """Sets the window's size in CSS pixels (a narrow window is a phone) and its colour scheme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
