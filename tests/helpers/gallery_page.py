"""Reads a page of `report.gallery` as a browser does."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def read_page(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Returns the page's facts, and by name each photo's `labels` {name: score}, `outcomes`, `picture` and `maps`."""
    blocks = dict(re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', path.read_text(), re.S))
    facts = json.loads(blocks["facts"])
    photos = {}
    for number, (name, labels, scores, *outcomes) in enumerate(json.loads(blocks["index"])):
        names = [facts["labels"][label] for label in labels]
        photos[name] = {
            "labels": {label: score / facts["scale"] for label, score in zip(names, scores, strict=True)},
            "outcomes": dict(zip(names, outcomes[0], strict=True)) if outcomes else {},
            **_shown(json.loads(blocks[f"b{number}"]), names),
        }
    return facts, photos


def _shown(block: dict[str, Any] | None, names: list[str]) -> dict[str, Any]:
    if block is None:
        return {"picture": None, "maps": {}}
    maps = {
        name: np.frombuffer(base64.b64decode(heat), np.uint8).reshape(block["shape"])
        for name, heat in zip(names, block["maps"], strict=True)
        if heat is not None
    }
    with Image.open(io.BytesIO(base64.b64decode(block["photo"]))) as picture:
        return {"picture": np.asarray(picture.convert("RGB")), "maps": maps}
