"""Reads photos in Parquet files: tables with a column of bytes, or of paths or URLs. Needs pyarrow (extra `ray`)."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import import_with_extra
from aia_jax.utils.storage import open_file

_BYTES = ("image", "bytes", "jpg", "jpeg", "png", "content", "data")  # preferred names of columns
_PATHS = ("path", "url", "uri", "image", "image_path", "image_url", "file_name", "file", "filename")
_NAMES = ("name", "key", "__key__", "id", "file_name", "filename", "path", "url")
_LARGEST_GROUP = 1 << 30  # bytes of a column in a row group; a task reads whole row groups


def table_photos(file: str) -> tuple[str, list[str]]:
    """Lists the photos in a table.

    Returns:
        The column of the bytes, such as "image.bytes", and the name of each row: its number, if no column has
        different names. For a column of paths or URLs: "", and the different paths.

    Raises InputError if the table cannot be read, has no photos, or has row groups of more than 1 GB.
    """
    with open_file(file) as opened, _parquet(file, opened) as table:
        schema = table.schema_arrow
        column, is_bytes = _photo_column(file, schema)
        if not is_bytes:
            paths = table.read(columns=[column]).column(0).to_pylist()
            return "", list(dict.fromkeys(filter(None, paths)))
        inner = _struct_fields(schema.field(column))
        chunks = _chunks(table, f"{column}.bytes" if inner else column)
        if "path" in inner and chunks and all(map(_is_null, chunks)):
            raise InputError(
                f"{file} has paths and no bytes in {column!r}; write the bytes, as embed_external_files does"
            )
        if (largest := max((chunk.total_uncompressed_size for chunk in chunks), default=0)) > _LARGEST_GROUP:
            raise InputError(
                f"{file} has row groups of up to {largest / 1e9:,.1f} GB, which each task would read as a whole; write "
                "it again with smaller ones, such as row_group_size=1000"
            )
        names = _names(table, column, inner)
        if None in names or len(set(names)) < len(names):
            names = [f"{number:08}" for number in range(len(names))]
        return column + ".bytes" * bool(inner), list(map(str, names))


def _names(table: Any, column: str, inner: Sequence[str]) -> list[Any]:
    schema = table.schema_arrow
    columns = [name for name in _NAMES if name in schema.names and _is_name(schema.field(name).type)]
    if columns:
        return table.read(columns=columns[:1]).column(0).to_pylist()
    if "path" in inner:  # as the library datasets writes images
        return [row and row["path"] for row in table.read(columns=[f"{column}.path"]).column(0).to_pylist()]
    return [None] * table.metadata.num_rows


def table_bytes(file: str, column: str, rows: Sequence[int]) -> list[bytes]:
    """Reads rows, in ascending order, of a column of bytes. An empty value becomes `b""`.

    Raises InputError if the table cannot be read.
    """
    with open_file(file) as opened, _parquet(file, opened) as table:
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


def _photo_column(file: str, schema: Any) -> tuple[str, bool]:
    """Returns the column of the photos, and whether it has bytes, not paths."""
    binary = [field.name for field in schema if _is_binary(field.type) or "bytes" in _struct_fields(field)]
    preferred = [name for name in _BYTES if name in binary]
    texts = [name for name in _PATHS if name in schema.names and _is_text(schema.field(name).type)]
    if preferred or (len(binary) == 1 and not texts):  # beside paths, bytes with another name may be a checksum
        return (preferred or binary)[0], True
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


def _chunks(table: Any, path: str) -> list[Any]:
    """Returns what the file says about a column in each row group."""
    groups = [table.metadata.row_group(group) for group in range(table.metadata.num_row_groups)]
    chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
    return [chunk for chunk in chunks if chunk.path_in_schema == path]


def _is_null(chunk: Any) -> bool:
    return bool(chunk.statistics) and chunk.statistics.null_count == chunk.num_values


def _struct_fields(field: Any) -> list[str]:
    import pyarrow.types as kinds

    return [inner.name for inner in field.type] if kinds.is_struct(field.type) else []


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
