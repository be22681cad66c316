"""Checks photo names from annotation files: a name must not lead out of the folder of the photos."""

import re
from pathlib import Path, PureWindowsPath
from typing import Any

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def has_lone_surrogate(text: str) -> bool:
    """Checks whether `text` contains half of a surrogate pair. JSON allows such a half, but UTF-8 cannot encode it."""
    return bool(_LONE_SURROGATE.search(text))


def leaves_folder(name: str) -> bool:
    """Checks whether the relative path `name` leads out of its folder."""
    # The rules of Windows know drives, "/" and "\", so they also find all paths that are unsafe on other systems.
    relative = PureWindowsPath(name)
    return bool(relative.anchor) or ".." in relative.parts


def name_problem(name: Any, folder: Path | str = "it") -> str:
    """Returns the reason why `name` is not a valid name of a file below `folder`; "" if it is valid."""
    if not isinstance(name, str) or not name.strip() or "\0" in name or not PureWindowsPath(name).parts:
        return f"must be a file name, found {name!r:.80}"
    if has_lone_surrogate(name):
        return f"{name!r:.80} cannot be written as UTF-8; rename the file"
    if leaves_folder(name):
        return f"{name!r} leaves the folder of the photos; it must be relative to {folder}"
    return ""
