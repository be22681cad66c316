"""What all HTML pages share: colours, light and dark, and ways to put a user's words into them."""

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from aia_jax.report.figures import FALSE_ALARM, HIT, MISS

_MARKS = f":root {{ --hit: {HIT.color}; --miss: {MISS.color}; --false: {FALSE_ALARM.color}; }}\n"


def base_style() -> str:
    """CSS of colours and type."""
    return _MARKS + (resources.files("aia_jax.report") / "page.css").read_text(encoding="utf-8")


def inert_json(value: Any) -> str:
    """JSON for a data block: ASCII, without anything that could end a script element or begin a comment in it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def content_hash(content: str) -> str:
    """A source for a content security policy: lets this very style or script be, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
