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

    A file with exactly the given name comes first. Otherwise, the last part of the name decides: in any Unicode form,
    then in any case, then with any suffix. Addresses and percent signs are decoded. If several photos have this last
    part, the photo with the most of the given folders is taken. If that is not exactly one photo, none is taken.
    """

    def __init__(self, folder: Path):
        self._folder, self._root = folder, os.path.realpath(folder)
        self._claims: dict[str, tuple[str, str]] = {}  # of each photo: the identity of its name in the list, the name
        self._others: dict[str, str] = {}  # the names in the list that differ from those of their photos
        self.exact, self.find = functools.cache(self._exact), functools.cache(self._find)

    def _exact(self, name: str) -> str:
        """Returns the relative path of the file with this name, "" if none. A backslash may separate folders, too."""
        for path in dict.fromkeys((_posix(name), _posix(name).replace("\\", "/"))):
            raw = os.path.splitext(path)[1].lower() in NOT_READ
            if not raw and not name_problem(path) and os.path.isfile(self._folder / path):
                return path
        return ""

    def _find(self, name: str) -> tuple[str, str]:
        """Returns the relative path of the photo, and a problem. One of them is "" unless two names claim a photo."""
        problem = name_problem(name, self._folder)
        if problem and not leaves_folder(name):
            return "", problem
        found = identity = self.exact(name)
        if not found:
            found, identity, why = self._search(name)
            if not found:
                return "", why or problem or self._absent(name)
            self._others[name] = found
        claim, first = self._claims.setdefault(found, (identity, name))
        if claim != identity:
            return found, f"{name!r} and {first!r} both lead to {found!r}; {_ADVICE}"
        return found, ""

    def print_note(self) -> None:
        """Prints to stderr how many photos were found under another name."""
        if self._others:
            name, found = next(iter(self._others.items()))
            count = f"{format_count(len(self._others), 'photo')} found by a name with another folder, case, form"
            print(f"{count} of Unicode or suffix, such as {name!r} for {found!r}", file=sys.stderr)

    def _absent(self, name: str) -> str:
        advice = NOT_READ.get(os.path.splitext(name)[1].lower())
        return f"no photo {name!r} in {self._folder}" + (f" that can be read ({advice})" if advice else "")

    def _search(self, name: str) -> tuple[str, str, str]:
        """Returns the path of a photo, the identity of its name in the list, and a problem."""
        plain = _posix(name).replace("\\", "/")
        for given in _readings(plain):
            folders, last = os.path.split(given)
            parents = [(_folded(os.path.basename(folders)), _key(last))] if folders else []
            for candidates in (self._photos.get(key, []) for key in (*parents, ("", _key(last)))):
                if len(candidates) > _MOST_COMPARED:
                    return "", "", _ambiguous(name, candidates)
                for alike in (_composed, _folded, lambda text: _folded(_stem(text)), *[_key] * (given != plain)):
                    found = [path for path in candidates if alike(os.path.basename(path)) == alike(last)]
                    best = max((self._rank(path, folders) for path in found), default=None)
                    found = [path for path in found if self._rank(path, folders) == best]
                    if found[1:]:
                        return "", "", _ambiguous(name, found)
                    if found:
                        same = best[0] and given == plain and (alike in (_composed, _folded) or _stem(last) == last)
                        return found[0], found[0] if same else _folded(plain), ""
        return "", "", ""

    def _rank(self, path: str, folders: str) -> tuple[bool, int]:
        """Returns whether the folders of `path` are `folders`, and how many of them agree, from the end on."""
        ours = _folded(os.path.dirname(os.path.join(self._root, path))).split("/")
        theirs = _folded(folders).split("/")
        differ = (n for n, (one, other) in enumerate(zip(ours[::-1], theirs[::-1], strict=False)) if one != other)
        return _folded(os.path.dirname(path)) == _folded(folders), next(differ, min(len(ours), len(theirs)))

    @functools.cached_property
    def _photos(self) -> dict[tuple[str, str], list[str]]:
        """All photos of the folder by `_key`, and by the name of their own folder and `_key`."""
        photos = defaultdict(list)
        for path in PhotoFiles().names(self._folder):
            folder, last = os.path.split(os.path.join(self._root, path))
            for parent in ("", _folded(os.path.basename(folder))):
                photos[parent, _key(last)].append(path)
        return photos


def _ambiguous(name: str, found: list[str]) -> str:
    more = f" or {len(found) - 2:,} more" if len(found) > 2 else ""
    return f"{name!r} can be {found[0]!r} or {found[1]!r}{more}; {_ADVICE}"


def _readings(name: str) -> list[str]:
    """Returns the name, the path in it if it is an address, and the same without the prefix of an upload."""
    address = name.partition("?d=")[2] or (re.split("[?#]", name)[0] if _ADDRESS.match(name) else name)
    folders, last = os.path.split(unquote(address))
    uploaded = os.path.join(folders, _UPLOAD_PREFIX.sub("", last))
    return list(dict.fromkeys((name, os.path.join(folders, last), uploaded)))


def _posix(name: str) -> str:
    return PurePosixPath(name).as_posix()


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES or suffix.lower() in NOT_READ else name


def _key(name: str) -> str:
    """Returns the name without suffix and signs, as tools for annotation store the names of uploads."""
    return re.sub(r"[^\w.-]", "", _folded(_stem(name)).replace(" ", "_"))
