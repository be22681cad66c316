"""Decides which files of a folder are photos. Counts the files that are left out, and the photos that are not read."""

import fnmatch
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from aia_jax.utils.messages import format_count, printable

_FORMATS = "apng avif bmp gif heic heif hif jfi jfif jif jpe jpeg jpg jxl mpo pbm pgm png pnm ppm tif tiff webp"
SUFFIXES = tuple(f".{name}" for name in (*_FORMATS.split(), "j2k", "jp2", "jpf", "jpx"))
# Names of what a network storage, an operating system or a photo program puts beside photos. Case is ignored.
_LEFT_OUT = (
    *(".*", "@eaDir", "*@Syno*", "SYNOPHOTO_THUMB*", "#recycle", "#snapshot", "~snapshot", "@Recycle*", "trashbox"),
    *("@Recently-Snapshot", "$RECYCLE.BIN", "RECYCLE[RD]", "System Volume Information", "lost+found", "__MACOSX"),
    *("@__thumb", "@tmp", "@sharebin", "@DownloadStation", "_gsdata_", "_vti_cnf", "~$*", "*.cocatalog*"),
    *("Network Recycle Bin*", "Network Trash Folder", "Temporary Items", "files_trashbin", "files_versions"),
    *("Thumbs.db", "ehthumbs*.db", "desktop.ini", "*.lrdata", "*.lrlibrary", "*.lrcat-data", "CaptureOne", "THMBNL"),
)
_LEFT_OUT_NAME = re.compile("|".join(map(fnmatch.translate, _LEFT_OUT)), re.IGNORECASE)
_LIBRARIES = (".photoslibrary", ".photolibrary", ".migratedphotolibrary", ".aplibrary")  # Apple's libraries of photos
_ORIGINALS = ("originals", "masters")  # their subfolders with the user's files; the others hold previews
_ADVICE = {
    "raw photos; export them as JPEG": (
        "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
    ),
    "videos": "3gp avi m2ts m4v mkv mov mp4 mpeg mpg mts webm wmv",
    "export them as JPEG or PNG": (
        "ai bpg dcm dds eps exr hdr heics ico icns insp jps jxr livp pcx psb psd pxd svg tga wdp xcf"
    ),
    "placeholders of iCloud; download the photos first": "icloud",
}
NOT_READ = {f".{suffix}": advice for advice, suffixes in _ADVICE.items() for suffix in suffixes.split()}
_OTHER_NAME = "perhaps photos; rename them, such as a.jpg"
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")
_BRANDS = (b"WEBP", b"heic", b"mif1", b"avif")  # bytes 8..11 of a file
_MOST_NAMED = 6  # names in a line of counts


class PhotoFiles:
    """Lists the photos below folders, and counts the other files.

    `names` may be called several times; the counts are then of all calls.
    """

    def __init__(self) -> None:
        self._left_out: Counter[str] = Counter()
        self._not_read: Counter[str] = Counter()
        self._errors: list[OSError] = []

    def names(self, folder: Path) -> list[str]:
        """Returns the sorted names of all photos below `folder`, relative to it.

        Follows links to folders, but lists each folder once, and skips links to a folder that contains `folder`.
        Includes links without a target if they have the suffix of a photo, so that they can be reported. The name of
        `folder` itself has no influence.
        """
        root, seen, found, waiting = os.path.realpath(folder), set(), [], [str(folder)]
        for top in waiting:  # Links are visited after the other folders, so that a folder is listed under its own name.
            for directory, folders, files in os.walk(top, onerror=self._errors.append):
                place = os.path.realpath(directory)
                above = os.path.commonpath((root, place)) == place != root
                folders[:] = [] if above or place in seen else sorted(self._kept_folders(directory, folders))
                if not above and place not in seen:
                    seen.add(place)
                    waiting += filter(os.path.islink, (os.path.join(directory, name) for name in folders))
                    photos = (name for name in sorted(files) if self._is_photo(directory, name))
                    found += [os.path.relpath(os.path.join(directory, name), folder) for name in photos]
        return sorted(found)

    def subfolders(self, folder: Path) -> list[str]:
        """Returns the sorted names of the subfolders that may contain photos."""
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
        return sorted(self._kept_folders(str(folder), names))

    def beside(self, folder: Path) -> list[str]:
        """Returns the sorted names of the photos that are directly in `folder`."""
        names = [entry.name for entry in os.scandir(folder) if not entry.is_dir()]
        return sorted(name for name in names if self._is_photo(str(folder), name))

    def notes(self) -> list[str]:
        """Returns at most one line about files that are left out, one about photos that are not read, and errors."""
        notes = []
        if self._left_out:
            counts = sorted(self._left_out.items(), key=lambda item: (-item[1], item[0]))
            files = [f"{number:,} " * bool(number) + printable(name) for name, number in counts]
            total = format_count(sum(self._left_out.values()), "file")
            notes.append(f"left out: {total} of the system or of a photo program: {_some(files)}")
        if self._not_read:
            kinds: dict[str, list[str]] = {}
            for suffix, number in self._not_read.most_common():
                counted = f"{number:,} {printable(suffix) or 'without a suffix'}"
                kinds.setdefault(NOT_READ.get(suffix, _OTHER_NAME), []).append(counted)
            notes.append(f"not read: {'; '.join(f'{_some(some)} ({advice})' for advice, some in kinds.items())}")
        if self._errors:
            notes.append(f"not read: {_some([f'{error.filename!r}: {error.strerror}' for error in self._errors])}")
        return notes

    def print_notes(self) -> None:
        """Prints `notes` to stderr."""
        for note in self.notes():
            print(note, file=sys.stderr)

    def _kept_folders(self, directory: str, names: list[str]) -> Iterator[str]:
        in_library = os.path.splitext(directory)[1].lower() in _LIBRARIES
        for name in names:
            path = os.path.join(directory, name)
            of_immich = name == "thumbs" and os.path.exists(os.path.join(path, ".immich"))
            if not _LEFT_OUT_NAME.match(name) and not of_immich and not (in_library and name.lower() not in _ORIGINALS):
                yield name
            else:  # Snapshots are not counted: each is a copy of the whole storage.
                snapshots = "snapshot" in name.lower()
                self._left_out[f"in {name}"] += 0 if snapshots else sum(len(files) for _, _, files in os.walk(path))

    def _is_photo(self, directory: str, name: str) -> bool:
        path, (stem, suffix) = os.path.join(directory, name), os.path.splitext(name.lower())
        if suffix != ".icloud" and _LEFT_OUT_NAME.match(name):
            self._left_out["._*" if name.startswith("._") else name] += 1
        elif suffix in SUFFIXES:
            return os.path.isfile(path) or not os.path.exists(path)
        elif suffix in NOT_READ or suffix.startswith(SUFFIXES):
            self._not_read[suffix] += 1
        elif not suffix or stem.endswith(SUFFIXES):  # such as a.jpg.1
            self._not_read.update([suffix] * _looks_like_photo(path))
        return False


def is_photo_name(name: str) -> bool:
    """Returns whether the relative path `name`, as in an archive or in object storage, is that of a photo.

    Applies the rules of `PhotoFiles` that need no file.
    """
    parts = name.split("/")
    return name.lower().endswith(SUFFIXES) and not any(map(_LEFT_OUT_NAME.match, filter(None, parts)))


def _looks_like_photo(path: str) -> bool:
    try:
        with open(path, "rb") if os.path.isfile(path) else open(os.devnull, "rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or start[8:] in _BRANDS


def _some(items: list[str]) -> str:
    more = [f"and {len(items) - _MOST_NAMED:,} more"] if len(items) > _MOST_NAMED else []
    return ", ".join(items[:_MOST_NAMED] + more)
