"""Finds photos in a folder, a list, Parquet files and tar files, on disks and in object storage, and reads their bytes.

A source is one of these:

    a folder               of photos, with its subfolders, or of `.parquet` or `.tar` files
    `.txt`                 a list of paths or URLs, one per line; relative paths start at the folder of the list
    `.parquet`             a table with a column of bytes, or of paths or URLs, and perhaps a column of names
    `.tar`                 photos in an uncompressed archive, as WebDataset writes them

Local files must have the same paths on all machines that read them.
"""

import contextlib
import itertools
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from aia_jax.data.photo_files import SUFFIXES, PhotoFiles, is_photo_name
from aia_jax.data.photo_folder import photo_names
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_text
from aia_jax.utils.messages import list_problems, printable
from aia_jax.utils.packages import import_with_extra
from aia_jax.utils.storage import errors_of_storage, is_url, open_storage, read_url

_BYTES = ("image", "bytes", "jpg", "jpeg", "png", "content", "data")  # preferred names of columns
_PATHS = ("path", "url", "uri", "image", "image_path", "image_url", "file_name", "file", "filename")
_NAMES = ("name", "key", "__key__", "id", "file_name", "filename", "path", "url")
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
    find = {".txt": _listed, ".parquet": _in_parquet, ".tar": _in_tar}.get(suffix)
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
            stored |= zip(some, _parquet_bytes(file, column, [place.start for place in some]), strict=True)
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
        inside = (_in_parquet if shard.lower().endswith(".parquet") else _in_tar)(f"{folder}/{shard}")
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


def _in_tar(file: str) -> list[PhotoPlace]:
    """Reads the headers of an archive. A hard link is a photo with the bytes of its target."""
    places: dict[str, PhotoPlace] = {}
    found, problem = [], ""
    with _opened(file) as opened:
        try:
            with tarfile.open(fileobj=opened, mode="r:") as archive:
                for member in archive:
                    if member.issparse():
                        raise InputError(
                            f"{file} has a sparse file, {printable(member.name)}; make it without --sparse"
                        )
                    place = PhotoPlace(member.name, file, member.offset_data, member.size)
                    if member.islnk() and member.linkname in places:
                        place = places[member.linkname]._replace(name=member.name)
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


def _in_parquet(file: str) -> list[PhotoPlace]:
    """Reads the names of the photos in a table. Without a column of names, the number of a row is the name."""
    with _opened(file) as opened, _parquet(file, opened) as table:
        schema = table.schema_arrow
        column, is_bytes = _photo_column(file, schema)
        inner = _struct_fields(schema.field(column)) if column in schema.names else []
        strings = [name for name in _NAMES if name in schema.names and _is_name(schema.field(name).type)]
        if "path" in inner and _is_null(table, f"{column}.bytes"):
            raise InputError(
                f"{file} has paths and no bytes in {column!r}; write the bytes, as embed_external_files does"
            )
        if not is_bytes:
            paths = table.read(columns=[column]).column(0).to_pylist()
            return [PhotoPlace(path, _below(file, path)) for path in dict.fromkeys(filter(None, paths))]
        names: list[Any] = [None] * table.metadata.num_rows
        if strings:
            names = table.read(columns=strings[:1]).column(0).to_pylist()
        elif "path" in inner:  # as the library datasets writes images
            names = [row and row["path"] for row in table.read(columns=[f"{column}.path"]).column(0).to_pylist()]
        column += ".bytes" * ("bytes" in inner)
        if None in names or len(set(names)) < len(names):
            names = [f"{number:08}" for number in range(len(names))]
        return [PhotoPlace(str(name), file, row, _WHOLE, column) for row, name in enumerate(names)]


def _photo_column(file: str, schema: Any) -> tuple[str, bool]:
    """Returns the column of the photos, and whether it has bytes, not paths."""
    binary = [field.name for field in schema if _is_binary(field.type) or "bytes" in _struct_fields(field)]
    preferred = [name for name in _BYTES if name in binary]
    if preferred or len(binary) == 1:
        return (preferred or binary)[0], True
    texts = [name for name in _PATHS if name in schema.names and _is_text(schema.field(name).type)]
    if texts and not binary:
        return texts[0], False
    listed = ", ".join(schema.names)
    raise InputError(
        f"{file} has no column of photos; name the column of the bytes {_BYTES[0]!r}, or that of the paths "
        f"{_PATHS[0]!r} (its columns: {listed})"
    )


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as kinds

    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    return kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind)


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds

    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


def _is_name(kind: Any) -> bool:
    import pyarrow.types as kinds

    return _is_text(kind) or kinds.is_integer(kind)


def _is_null(table: Any, path: str) -> bool:
    """Returns whether the file says that all values of a column are null."""
    groups = [table.metadata.row_group(group) for group in range(table.metadata.num_row_groups)]
    chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema == path]
    return bool(chunks) and all(
        chunk.statistics and chunk.statistics.null_count == chunk.num_values for chunk in chunks
    )


def _struct_fields(field: Any) -> list[str]:
    import pyarrow.types as kinds

    return [inner.name for inner in field.type] if kinds.is_struct(field.type) else []


def _parquet_bytes(file: str, column: str, rows: Sequence[int]) -> list[bytes]:
    """Reads rows, in ascending order, of a column of bytes. An empty value becomes b""."""
    with _opened(file) as opened, _parquet(file, opened) as table:
        found, first = [], 0
        for group in range(table.metadata.num_row_groups):
            end = first + table.metadata.row_group(group).num_rows
            wanted = [row - first for row in rows if first <= row < end]
            if wanted:
                column_values = table.read_row_group(group, columns=[column]).column(0)
                values = [column_values[row].as_py() for row in wanted]  # `take` would copy more than 2 GB, and fail
                found += [value["bytes"] if isinstance(value, dict) else value for value in values]
            first = end
    return [value or b"" for value in found]


@contextlib.contextmanager
def _parquet(file: str, opened: BinaryIO) -> Iterator[Any]:
    parquet = import_with_extra("pyarrow.parquet", f"reading {file}", "ray")
    import pyarrow

    try:
        yield parquet.ParquetFile(opened)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
            raise  # of the disk or the object storage; pyarrow raises OSError for damaged pages
        raise InputError(f"{file} is not a Parquet file, or is damaged: {str(error).splitlines()[0]}") from None


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if not is_url(file):
        with open(file, "rb") as opened:
            yield opened
        return
    storage, path = open_storage(file)
    with errors_of_storage(file), storage.open(path, "rb") as opened:
        yield opened
