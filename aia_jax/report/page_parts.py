"""Shared parts of the HTML pages: styles, data blocks and the content security policy."""

import base64
import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote


class Mark(NamedTuple):
    """A sign and a colour for a correct, missed or wrong prediction. Colour-blind people can distinguish the marks."""

    sign: str
    color: str
    meaning: str


HIT = Mark("✓", "#0068a8", "hit")
MISS = Mark("○", "#8c5a00", "missed")
FALSE_ALARM = Mark("✗", "#c8400a", "false alarm")


def base_style() -> str:
    """Returns the CSS for colours and text, which all pages share."""
    marks = f":root {{ --hit: {HIT.color}; --miss: {MISS.color}; --false: {FALSE_ALARM.color}; }}\n"
    return marks + read_part("page.css")


def read_part(name: str, package: str = "aia_jax.report") -> str:
    """Returns the text of the file `name` in `package`."""
    return (resources.files(package) / name).read_text(encoding="utf-8")


def inert_json(value: Any) -> str:
    """Returns ASCII JSON for a script element of an HTML page. The JSON cannot end the element or start a comment."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def content_hash(content: str) -> str:
    """Returns the part of a content security policy that allows the style or script `content`, and no other."""
    return f"'sha256-{to_base64(hashlib.sha256(content.encode()).digest())}'"


def folder_url(folder: Path, page: Path) -> str:
    """Returns the URL of `folder`, which ends in a slash, relative to `page`; "" if they are on different drives."""
    try:
        return "./" + quote(Path(os.path.relpath(folder.resolve(), page.parent.resolve())).as_posix()) + "/"
    except ValueError:
        return ""


def to_base64(data: bytes) -> str:
    """Encodes `data` in Base64 and returns text."""
    return base64.b64encode(data).decode()
