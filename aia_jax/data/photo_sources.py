"""Finds photos in a folder, a list, Parquet files and tar files, on disks and in object storage, and reads their bytes.

A source is one of these:

    a folder               of photos, with its subfolders, or of `.parquet` or `.tar` files
    `.txt`                 a list of paths or URLs, one per line; relative paths start at the folder of the list
    `.parquet`             a table with a column of bytes, or of paths or URLs, and perhaps a column of names
    `.tar`                 photos in an uncompressed archive, as WebDataset writes them

Local files must have the same paths on all machines that read them.
"""

import itertools
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from aia_jax.data.photo_files import SUFFIXES, PhotoFiles, is_photo_name
from aia_jax.data.photo_folder import photo_names
from aia_jax.data.photo_tables import table_bytes, table_photos
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_text
from aia_jax.utils.messages import list_problems, printable
from aia_jax.utils.storage import errors_of_storage, is_url, open_file, open_storage, read_url

_WHOLE = -1
_OTHER_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_RECORD = 10_240  # bytes of which a tar file has a multiple; the last ones are zeros


class PhotoPlace(NamedTuple):
    """Where the bytes of a photo are.

    Attributes:
        name: name of the photo, unique in its source.
        file: path or URL of the file that contains the photo.
        start: first byte in `file`, or the row of a Parquet file.
        size: number of bytes; -1 for a whole file.
        column: column of a Parquet file, such as "image" or "image.bytes"; "" for other files.
    """

    name: str
    file: str
    start: int = 0
    size: int = _WHOLE
    column: str = ""


class PhotoSource(NamedTuple):
    """The photos of a source.

    Attributes:
        places: the photos, in order.
        root: the local folder or file that contains or names them; "" if they are all in object storage.
    """

    places: list[PhotoPlace]
    root: str


def find_photos(source: str | Path) -> PhotoSource:
    """Lists the photos of a source; see the module.

    Raises InputError if the source does not exist, cannot be read or has no photos, or if two photos have one name.
    """
    text = source.rstrip("/") if is_url(source) else os.path.abspath(source)  # tasks have other current folders
    suffix = os.path.splitext(text)[1].lower()
    if suffix in (".gz", ".tgz", ".zip", ".zst", ".bz2", ".xz"):
        raise InputError(f"{text} is compressed, so single photos in it cannot be read; name an uncompressed .tar file")
    if not is_url(text) and not os.path.exists(text):
        raise InputError(f"{text} does not exist; name a folder, a .txt list, a .parquet file or a .tar file")
    find = {".txt": _listed, ".parquet": _in_table, ".tar": _in_tar}.get(suffix)
    places = find(text) if find and not _is_folder(text) else _in_folder(text)
    if not places:
        raise InputError(f"{text} has no photos" + (not find) * f"; their names must end in {', '.join(SUFFIXES)}")
    if len(twice := Counter(place.name for place in places)) < len(places):
        several = [printable(name) for name, count in twice.most_common(6) if count > 1]
        raise InputError(f"{text} has several photos with one name; rename them:{list_problems(several, 5)}")
    in_cloud = is_url(text) or all(is_url(place.file) for place in places)
    return PhotoSource(places, "" if in_cloud else text)


def place_reader(places: Sequence[PhotoPlace]) -> Callable[[PhotoPlace], bytes]:
    """Returns a function that returns the bytes of one of `places`. Photos in Parquet files are read now.

    The function raises OSError if there is no such file, and InputError if object storage does not answer.

    Raises InputError if a Parquet file cannot be read.
    """
    stored: dict[PhotoPlace, bytes] = {}
    for (file, column), group in itertools.groupby(places, key=lambda place: (place.file, place.column)):
        if column:
            some = list(group)
            stored |= zip(some, table_bytes(file, column, [place.start for place in some]), strict=True)
    return lambda place: stored[place] if place.column else _read(place)


def _read(place: PhotoPlace) -> bytes:
    if not place.size:
        return b""  # S3 has no empty ranges, and would send the whole file
    end = None if place.size == _WHOLE else place.start + place.size
    if is_url(place.file):
        storage, path = open_storage(place.file)
        try:
            return storage.cat_file(path, start=place.start or None, end=end)
        except FileNotFoundError:
            raise
        except Exception:
            with errors_of_storage(place.file):
                raise
    with open(place.file, "rb") as file:
        file.seek(place.start)
        return file.read(place.size)


def _is_folder(text: str) -> bool:
    if not is_url(text):
        return os.path.isdir(text)
    storage, path = open_storage(text)
    with errors_of_storage(text):
        return storage.isdir(path)


def _in_folder(folder: str) -> list[PhotoPlace]:
    if is_url(folder):
        storage, path = open_storage(folder)
        with errors_of_storage(folder):
            below = [name for name in storage.find(path) if name.startswith(f"{path}/")]
        names = sorted(name.removeprefix(f"{path}/") for name in below)
        beside = [name for name in names if "/" not in name]
        photos = [name for name in names if is_photo_name(name)]
    else:
        beside = sorted(entry.name for entry in os.scandir(folder) if entry.is_file()) if os.path.isdir(folder) else []
        photos = []
    shards = [name for name in beside if name[0] != "." and name.lower().endswith((".parquet", ".tar"))]
    if not is_url(folder):
        photos = PhotoFiles().names(Path(folder)) if shards else photo_names(Path(folder))
    if shards and photos:
        raise InputError(
            f"{folder} has photos, such as {printable(photos[0])}, and also {printable(shards[0])}; "
            "name the file, or separate them"
        )
    if not shards:
        return [PhotoPlace(name, f"{folder}/{name}") for name in photos]
    places = []
    for shard in shards:
        inside = (_in_table if shard.lower().endswith(".parquet") else _in_tar)(f"{folder}/{shard}")
        places += [place._replace(name=f"{shard}/{place.name}") for place in inside]
    return places


def _listed(source: str) -> list[PhotoPlace]:
    if is_url(source):
        try:
            text = read_url(source).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{source} is not UTF-8 text ({error}); convert it to UTF-8") from None
    else:
        text = read_text(Path(source))
    lines = re.split(r"[\r\n]", text)  # not `splitlines`: names may hold other separators
    names = dict.fromkeys(filter(None, map(str.strip, lines)))  # a photo that is listed twice is one photo
    return [PhotoPlace(name, _below(source, name)) for name in names]


def _below(file: str, name: str) -> str:
    """Returns the path or URL of `name`, which a list or table in `file` names."""
    if is_url(name) or os.path.isabs(name):
        return name
    if _OTHER_URL.match(name):
        raise InputError(f"{file} names {printable(name):.200}; only paths and URLs with gs:// or s3:// can be read")
    return f"{file.rpartition('/')[0]}/{name}"


def _in_table(file: str) -> list[PhotoPlace]:
    column, names = table_photos(file)
    if not column:
        return [PhotoPlace(path, _below(file, path)) for path in names]
    return [PhotoPlace(name, file, row, _WHOLE, column) for row, name in enumerate(names)]


def _in_tar(file: str) -> list[PhotoPlace]:
    """Reads the headers of an archive. A link to an earlier photo is a photo with the same bytes."""
    places: dict[str, PhotoPlace] = {}
    found, problem = [], ""
    with open_file(file) as opened:
        try:
            with tarfile.open(fileobj=opened, mode="r:") as archive:
                for member in archive:
                    if member.issparse():
                        raise InputError(
                            f"{file} has a sparse file, {printable(member.name)}; make it without --sparse"
                        )
                    place, target = PhotoPlace(member.name, file, member.offset_data, member.size), member.linkname
                    if member.issym():
                        target = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), target))
                    if (member.issym() or member.islnk()) and target in places:
                        place = places[target]._replace(name=member.name)
                    elif member.issym() and is_photo_name(member.name):
                        raise InputError(f"{file} has a link, {printable(member.name)}; make it with --dereference")
                    elif not member.isfile():
                        continue
                    places[member.name] = place
                    if is_photo_name(member.name):
                        found.append(place)
                opened.seek(archive.offset)
                end = opened.read(_RECORD)  # `tarfile` also ends, without an error, at a damaged header
                problem = "it does not end with zeros" * (len(end) < tarfile.BLOCKSIZE or any(end))
        except tarfile.TarError as error:
            problem = str(error)
    if problem:
        raise InputError(f"{file} is not an uncompressed .tar file, or is truncated or damaged: {problem}")
    return found
