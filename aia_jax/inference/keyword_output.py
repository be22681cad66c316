"""Writes the labels of photos as keywords into XMP, for photo programs, and takes them back."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aia_jax.data.photo_files import PhotoFiles
from aia_jax.data.photo_metadata.embedded import read_embedded
from aia_jax.data.photo_metadata.keywords import RECORD, KeywordPath, merge_keywords
from aia_jax.data.photo_metadata.mapping import KeywordMapping
from aia_jax.data.photo_metadata.photo_xmp import (
    FORMS,
    SUFFIX,
    Change,
    change_embedded,
    change_sidecar,
    embedded_keywords,
    photo_keywords,
    read_sidecar,
    sidecar_path,
)
from aia_jax.data.photo_metadata.xmp_packet import XmpPacket
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import list_files, remove_temporary_files

Outcome = tuple[str, bool, str]  # name of a file, whether it was changed, and a problem or ""


@dataclasses.dataclass
class KeywordWriter:
    """Writes automatic keywords. A second call for a photo replaces the automatic keywords, and no others.

    Args:
        folder: folder of the photos.
        mapping: the keyword of each label.
        parent: levels above all automatic keywords; () for none.
        sidecar: one of `photo_xmp.FORMS`; "" writes no sidecars.
        embed: whether to write into the photos.
        keep_time: whether a photo keeps its modification time.
    """

    folder: Path
    mapping: KeywordMapping
    parent: KeywordPath = ()
    sidecar: str = FORMS[0]
    embed: bool = False
    keep_time: bool = False
    _owners: dict[Path, str] = dataclasses.field(default_factory=dict)
    _cleaned: set[Path] = dataclasses.field(default_factory=set)

    def write(self, name: str, labels: Iterable[str]) -> Iterator[Outcome]:
        """Writes the keywords of a photo. Yields the outcome for each file."""
        photo = self.folder / name
        if photo.parent not in self._cleaned:
            self._cleaned.add(photo.parent)
            with contextlib.suppress(OSError):  # the outcome of the photo says what is wrong with the folder
                remove_temporary_files(photo.parent)
        paths = dict.fromkeys(path for label in labels if (path := self.mapping.path(label)))
        keywords = [(*self.parent, *path) for path in paths]
        if self.sidecar:
            path = sidecar_path(photo, self.sidecar)
            shown = str(Path(name).with_name(path.name))
            owner = self._owners.setdefault(path, name)
            if owner != name:
                yield shown, False, f"{name} and {owner} share it; --sidecar {FORMS[0]} writes one for each photo"
            else:
                yield _outcome(shown, lambda: change_sidecar(path, self._merge(photo, keywords, photo_keywords)))
        if self.embed:
            change = self._merge(photo, keywords, embedded_keywords)
            yield _outcome(name, lambda: change_embedded(photo, change, keep_time=self.keep_time))

    @staticmethod
    def _merge(photo: Path, keywords: Sequence[KeywordPath], read: Callable[[Path], tuple[Any, str]]) -> Change:
        def change(packet: XmpPacket, new: bool) -> XmpPacket | None:
            carried = read(photo)[0] if new and keywords else ()
            return merge_keywords(packet, keywords, carried, new=new)

        return change


def undo(folder: Path) -> Iterator[Outcome]:
    """Takes all automatic keywords in a folder back: from sidecars, and from the photos themselves."""
    record = RECORD.uri.encode()
    photos = PhotoFiles().names(folder)
    sidecars = {sidecar_path(folder / name, form) for name in photos for form in FORMS}  # also below links to folders
    names = {os.path.relpath(path, folder) for path in sidecars if os.path.exists(path)}
    for name in sorted(names.union(list_files(folder, (SUFFIX,)))):
        path = folder / name
        with contextlib.suppress(InputError):
            if record in read_sidecar(path):
                yield _outcome(name, lambda path=path: change_sidecar(path, _take_back))
    for name in photos:
        with contextlib.suppress(InputError, OSError):
            if record in read_embedded(folder / name).xmp:
                yield _outcome(name, lambda path=folder / name: change_embedded(path, _take_back))


def _take_back(packet: XmpPacket, new: bool) -> XmpPacket | None:
    return None if new else merge_keywords(packet, ())


def _outcome(name: str, change: Callable[[], bool]) -> Outcome:
    try:
        return name, change(), ""
    except InputError as error:
        return name, False, str(error)
