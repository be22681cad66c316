"""The browser that pages are tried in."""

import contextlib
from collections.abc import Iterator

import pytest

from benchmarks import browser as benchmarks


@contextlib.contextmanager
def browser() -> Iterator:
    """See `benchmarks.browser`; skips the test where there is none."""
    with contextlib.ExitStack() as opened:
        try:
            driver = opened.enter_context(benchmarks.browser())
        except benchmarks.NoBrowserError as error:
            pytest.skip(str(error))
        yield driver


def emulate(driver, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    """A window of this many CSS pixels, a phone if it is narrow."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
