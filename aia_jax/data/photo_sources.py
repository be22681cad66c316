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
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from aia_jax.data.photo_files import SUFFIXES, is_photo_name
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
        root: the local folder or file that contains them; "" for object storage.
    """

    places: list[PhotoPlace]
    root: str


def find_photos(source: str | Path) -> PhotoSource:
    """Lists the photos of a source; see the module.

    Raises InputError if the source does not exist, cannot be read or has no photos, or if two photos have one name.
    """
    text = str(source)
    suffix = os.path.splitext(text)[1].lower()
    if suffix in (".gz", ".tgz", ".zip", ".zst", ".bz2", ".xz"):
        raise InputError(f"{text} is compressed, so single photos in it cannot be read; name an uncompressed .tar file")
    if not is_url(text) and not os.path.exists(text):
        raise InputError(f"{text} does not exist; name a folder, a .txt list, a .parquet file or a .tar file")
    find = {".txt": _listed, ".parquet": _in_parquet, ".tar": _in_tar}.get(suffix)
    places = find(text) if find and not os.path.isdir(text) else _in_folder(text)
    if not places:
        raise InputError(f"{text} has no photos; their names must end in {', '.join(SUFFIXES)}")
    if len(twice := Counter(place.name for place in places)) < len(places):
        several = [printable(name) for name, count in twice.most_common(6) if count > 1]
        raise InputError(f"{text} has several photos with one name; rename them:{list_problems(several, 5)}")
    return PhotoSource(places, "" if is_url(text) else os.path.abspath(text))


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


def _in_folder(folder: str) -> list[PhotoPlace]:
    if not is_url(folder):
        shards = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in (".parquet", ".tar"))
        if not shards:
            return [PhotoPlace(name, os.path.join(folder, name)) for name in photo_names(Path(folder))]
        files = list(map(str, shards))
    else:
        storage, path = open_storage(folder)
        with errors_of_storage(folder):
            found = sorted(storage.find(path))
        start = folder[: folder.index("://") + 3]
        names = [name.removeprefix(f"{path}/") for name in found]
        files = [start + name for name in found if os.path.splitext(name)[1].lower() in (".parquet", ".tar")]
        if not files:
            return [PhotoPlace(name, f"{folder}/{name}") for name in names if is_photo_name(name)]
    places = []
    for file in files:
        shard = _in_parquet(file) if file.lower().endswith(".parquet") else _in_tar(file)
        places += [place._replace(name=f"{os.path.basename(file)}/{place.name}") for place in shard]
    return places


def _listed(source: str) -> list[PhotoPlace]:
    if is_url(source):
        lines = read_url(source).decode(errors="replace").splitlines()
    else:
        lines = read_text(Path(source)).splitlines()
    names = dict.fromkeys(filter(None, map(str.strip, lines)))  # a photo that is listed twice is one photo
    return [PhotoPlace(name, _below(source, name)) for name in names]


def _below(file: str, name: str) -> str:
    """Returns the path or URL of `name`, which a list or table in `file` names."""
    if is_url(name) or os.path.isabs(name):
        return name
    folder = file.rpartition("/")[0] if is_url(file) else os.path.dirname(os.path.abspath(file))
    return f"{folder}/{name}"


def _in_tar(file: str) -> list[PhotoPlace]:
    """Reads the headers of an archive."""
    places = []
    with _opened(file) as opened:
        try:
            with tarfile.open(fileobj=opened, mode="r:") as archive:
                for member in archive:
                    if member.isfile() and is_photo_name(member.name):
                        places.append(PhotoPlace(member.name, file, member.offset_data, member.size))
        except tarfile.TarError as error:
            raise InputError(f"{file} is not an uncompressed .tar file, or is truncated: {error}") from None
    return places


def _in_parquet(file: str) -> list[PhotoPlace]:
    """Reads the names of the photos in a table. Without a column of names, the number of a row is the name."""
    with _opened(file) as opened, _parquet(file, opened) as table:
        schema = table.schema_arrow
        column, is_bytes = _photo_column(file, schema)
        inner = _struct_fields(schema.field(column)) if column in schema.names else []
        strings = [name for name in _NAMES if name in schema.names and _is_text(schema.field(name).type)]
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
    import pyarrow.types as kinds

    binary = [
        field.name
        for field in schema
        if kinds.is_binary(field.type) or kinds.is_large_binary(field.type) or "bytes" in _struct_fields(field)
    ]
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


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds

    return kinds.is_string(kind) or kinds.is_large_string(kind)


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
                values = table.read_row_group(group, columns=[column]).column(0).take(wanted).to_pylist()
                found += [value["bytes"] if isinstance(value, dict) else value for value in values]
            first = end
    return [value or b"" for value in found]


@contextlib.contextmanager
def _parquet(file: str, opened: BinaryIO) -> Iterator[Any]:
    parquet = import_with_extra("pyarrow.parquet", f"reading {file}", "ray")
    import pyarrow

    try:
        yield parquet.ParquetFile(opened)
    except pyarrow.ArrowInvalid as error:
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
