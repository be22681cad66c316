"""Checks paths that users give in flags, config fields, environment variables and calls."""

import os
import re
from pathlib import Path

from aia_jax.utils.errors import InputError

# gs://a, gs:/a (made of it by pathlib), me@host:/a, C:\a, \\host\a
_REMOTE = re.compile(r"[A-Za-z][\w+.@-]*:[/\\]|\\\\")
_UNREPLACED = re.compile(r"\$\{?[A-Z_]{2,}")  # $HOME


def local_path(given: str | os.PathLike) -> Path:
    """Returns the path of a local file or folder, which need not exist. Replaces a leading `~` or `~user`.

    Raises:
        InputError: the path is empty, is a URL or a path of another system, holds `$NAME` and does not exist, or the
            home folder is unknown.
    """
    text, problem = os.fsdecode(given), ""
    if not text.strip() or "\0" in text:
        problem = "is no path; give the path of a file or folder"
    elif _REMOTE.match(text):
        problem = "is not a path of this machine; copy the files to it or mount the storage, and give that path"
    elif _UNREPLACED.search(text) and not os.path.lexists(text):
        problem = "holds a variable that the shell did not replace; remove the single quotes, or give the full path"
    if problem:
        raise InputError(f"{text[:200]!r} {problem}")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and (not os.path.isabs(expanded) or (not os.environ.get("HOME", "/") and text[1:2] in "/")):
        raise InputError(f"{text[:200]!r}: this home folder is unknown; give the full path")
    return Path(expanded)


def cache_root(configured: str) -> Path:
    """Returns the folder of all caches: the first of `configured`, $AIA_JAX_CACHE and ~/.cache/aia_jax that is set."""
    chosen = configured or os.environ.get("AIA_JAX_CACHE") or "~/.cache/aia_jax"
    try:
        return local_path(chosen).absolute()
    except InputError as error:
        raise InputError(f"{error}; config.data.cache_dir or $AIA_JAX_CACHE sets the folder of the caches") from None
