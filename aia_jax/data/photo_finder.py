"""Finds the photos that a list names. Lists of other tools write other folders, another case or another suffix."""

import functools
import os
import re
import sys
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from aia_jax.data.photo_files import NOT_READ, SUFFIXES, PhotoFiles
from aia_jax.data.safe_names import leaves_folder, name_problem
from aia_jax.utils.messages import format_count

_UPLOAD_PREFIX = re.compile("^[0-9a-f]{8}-(?=.)")  # Label Studio writes it before the name of an uploaded file
_ADDRESS = re.compile(r"\w\w+:/")  # longer than a drive of Windows
_ADVICE = "write the name as it is in the folder"
_MOST_COMPARED = 1000  # photos with the same last part of the name


class PhotoFinder:
    """Finds photos below `folder` by the names in a list.

    A file with exactly the given name comes first. Otherwise, the longest end of the given path that a photo has
    decides: with folders in any form, and with a last part in any Unicode form and any case, then with any suffix.
    Addresses and percent signs are decoded. If several photos have this end, none is taken.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._claims: dict[str, str] = {}  # of each photo: the first name in the list that leads to it
        self._others: dict[str, str] = {}  # the names in the list that differ from those of their photos
        self.find = functools.cache(self._find)

    def _find(self, name: str) -> tuple[str, str]:
        """Returns the relative path of the photo, and a problem. One of them is "" unless two names claim a photo."""
        problem = name_problem(name, self._folder)
        if problem and not leaves_folder(name):
            return "", problem
        found = next(filter(self._is_photo, (PurePosixPath(name).as_posix(), _plain(name))), "")
        if not found:
            candidates = self._search(_plain(name))
            if not candidates:
                return "", problem or f"no photo {name!r} in {self._folder}"
            if len(candidates) > 1:
                more = f" or {len(candidates) - 2:,} more" if len(candidates) > 2 else ""
                return "", f"{name!r} can be {candidates[0]!r} or {candidates[1]!r}{more}; {_ADVICE}"
            found = self._others[name] = candidates[0]
        first = self._claims.setdefault(found, name)
        if _folded(_plain(first)) != _folded(_plain(name)):
            return found, f"{name!r} and {first!r} both lead to {found!r}; {_ADVICE}"
        return found, ""

    def print_note(self) -> None:
        """Prints to stderr how many photos were found under another name."""
        if self._others:
            name, found = next(iter(self._others.items()))
            count = f"{format_count(len(self._others), 'photo')} found by a name with another folder, case, form"
            print(f"{count} of Unicode or suffix, such as {name!r} for {found!r}", file=sys.stderr)

    def _is_photo(self, path: str) -> bool:
        raw = os.path.splitext(path)[1].lower() in NOT_READ
        return not raw and not name_problem(path) and os.path.isfile(self._folder / path)

    def _search(self, name: str) -> list[str]:
        """Returns the photos that have the longest end of the path `name`."""
        for given in _readings(name):
            *folders, last = given.split("/")
            stem = _folded(_stem(last))
            forms = [(_folded, _folded(last)), (lambda text: _folded(_stem(text)), stem), (_key, stem)]
            for start in range(len(folders) + 1):
                candidates = self._photos.get("/".join([*map(_folded, folders[start:]), _key(last)]), [])
                if len(candidates) > _MOST_COMPARED:
                    return candidates
                for form, wanted in forms if given != name else forms[:2]:
                    if found := [path for path in candidates if form(os.path.basename(path)) == wanted]:
                        return found
        return []

    @functools.cached_property
    def _photos(self) -> dict[str, list[str]]:
        """All photos by each end of their paths: the folded names of folders, and the `_key` of the file."""
        photos, root = defaultdict(list), os.path.basename(os.path.realpath(self._folder))
        for path in PhotoFiles().names(self._folder):
            *folders, last = os.path.join(root, path).split("/")
            for start in range(len(folders) + 1):
                photos["/".join([*map(_folded, folders[start:]), _key(last)])].append(path)
        return photos


def _readings(name: str) -> list[str]:
    """Returns the name, the path in it if it is an address, and the same without the prefix of an upload.

    In addresses of files that Label Studio serves, the path comes first: the name would hide the first folder of it.
    """
    served = name.partition("?d=")[2]
    address = served or (re.split("[?#]", name)[0] if _ADDRESS.match(name) else name)
    folders, last = os.path.split(unquote(address))
    path, uploaded = os.path.join(folders, last), os.path.join(folders, _UPLOAD_PREFIX.sub("", last))
    return list(dict.fromkeys((path, name, uploaded) if served else (name, path, uploaded)))


def _plain(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES or suffix.lower() in NOT_READ else name


def _key(name: str) -> str:
    """Returns the name without suffix and signs, as tools for annotation store the names of uploads."""
    return re.sub(r"[^\w.-]", "", _folded(_stem(name)).replace(" ", "_"))
