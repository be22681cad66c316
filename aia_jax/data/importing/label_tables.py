"""Reads labels of photos from text tables of many layouts; see `read_table`."""

import ast
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aia_jax.data.importing.labelled_photos import SPLIT_NAMES, LabelList, LabelRow
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_text

_PHOTO_COLUMNS = ("image", "image_name", "image_id", "image_path", "filename", "file_name", "file", "filepath")
_PHOTO_COLUMNS += ("file_path", "path", "photo", "name")
_ONE_LABEL = ("label", "tag", "keyword", "class", "category")
_LABEL_COLUMNS = ("labels", "image_labels", "tags", "keywords", "classes", "categories", *_ONE_LABEL)
_SPLIT_COLUMNS = ("split", "subset", "partition", "set")
_UNNAMED = re.compile(r"(unnamed:_\d+)?")  # the name that pandas gives to a column of row numbers
_DELIMITERS = (",", ";", "\t", "|")
_LISTS = "lists"
_DESCRIPTIONS = {"": "one per cell", " ": "separated by blanks", _LISTS: "lists"}  # descriptions of separators
_KNOWN_SPLITS = ", ".join(SPLIT_NAMES)
_YES, _NO = ("1", "1.0", "true", "yes", "x"), ("0", "0.0", "-1", "false", "no", "")


Row = tuple[int, list[str]]  # line number, and one cell per column


class _Columns(NamedTuple):
    """Indices of columns. If `labels` is None, each column in `indicators` is a label with the values 0 and 1."""

    photo: int
    labels: int | None
    split: int | None
    indicators: list[int]
    unused: list[int]


def read_table(path: Path, *, photo_column: str = "", label_column: str = "", separator: str = "") -> LabelList:
    """Reads labels from a text table with a header, in UTF-8 with or without a byte-order mark.

    The delimiter is the comma, semicolon, tab or "|" that gives the most columns in the header. Columns are found by
    their names in upper or lower case: photos ("image", "file_name", ...), labels ("labels", "tags", ...) and splits
    ("split", "subset", ...). Without a column of labels, each remaining column is a label with the values 0 and 1.

    The labels of all cells are read by the first rule that applies:

    1. If all cells with labels are lists in the syntax of Python or JSON, the items of the lists are the labels.
    2. If any cell contains "|", this character separates the labels. If not, the same rule holds for ";", then ",".
    3. If the column has no singular name ("label", "tag", ...), and no photo has two rows, spaces separate the labels.
    4. Otherwise a cell is one label.

    Args:
        photo_column, label_column: names of the columns, if they differ from the known names.
        separator: text between two labels in a cell; "none": a cell is one label; "": the rules above apply.

    Raises:
        InputError: the file cannot be read, or a column is missing.
    """
    found, problems = [], []
    header, rows, delimiter = _parse(path, problems)
    columns = _find_columns(path, header, photo_column, label_column)
    splits = [_split_name(cells, columns) for _, cells in rows]
    if columns.labels is None:
        how = f"{len(columns.indicators):,} columns of 0 and 1 as labels"
    else:
        valid = [cells for (_, cells), split in zip(rows, splits, strict=True) if split is not None]
        separator = _choose_separator(valid, header, columns, separator)
        description = _DESCRIPTIONS.get(separator, f"separated by {separator!r}")
        how = f"labels in column {header[columns.labels]!r}, {description}"
    for (line, cells), split in zip(rows, splits, strict=True):
        where = f"{path.name}:{line}"
        try:
            if split is None:
                raise ValueError(f"split {cells[columns.split].strip()!r:.40} is unknown; known: {_KNOWN_SPLITS}")
            if columns.labels is None:
                labels = _indicated_labels(cells, header, columns)
            else:
                labels = _split_labels(cells[columns.labels].strip(), separator)
            found.append(LabelRow(where, cells[columns.photo].strip(), labels, split))
        except ValueError as problem:
            problems.append(f"{where}: {problem}")
    if columns.split is not None:
        how += f", splits in column {header[columns.split]!r}"
    if columns.unused:
        how += f"; not used: {', '.join(repr(header[column]) for column in columns.unused)}"
    understood = f"{path}: separated by {delimiter!r}, photos in column {header[columns.photo]!r}, {how}"
    return LabelList(tuple(found), understood, tuple(problems))


def _parse(path: Path, problems: list[str]) -> tuple[list[str], list[Row], str]:
    """Returns the header, the rows that are not empty, and the delimiter. Appends lines on bad rows to `problems`."""
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), None)
    if first is None:
        raise InputError(f"{path} is empty; expected a header such as image,labels and a row for each photo")
    header, rows, line = [], [], 1
    try:
        delimiter = max(_DELIMITERS, key=lambda sign: len(next(csv.reader([first], delimiter=sign))))
        text = re.sub(f'" +(?={re.escape(delimiter)}|\r?$)', '"', text, flags=re.MULTILINE)  # no blanks after quotes
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if not header:
                    header = [cell.strip() for cell in cells]
                elif len(cells) != len(header):
                    problems.append(
                        f"{path.name}:{line}: {len(cells)} cells, but the header has {len(header)}; a cell that holds "
                        f"{delimiter!r} must be in quotes"
                    )
                else:
                    rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{line} is not a row of a table: {error}; check its quotes") from None
    return header, rows, delimiter


def _find_columns(path: Path, header: list[str], photo_column: str, label_column: str) -> _Columns:
    names = [re.sub(r"[\s-]+", "_", name.lower()) for name in header]
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise InputError(f"{path}: two columns are called {twice[0]!r}")

    def find(given: str, flag: str, known: Sequence[str]) -> int | None:
        if given and given not in header:
            raise InputError(f"{path} has no column {given!r}, which {flag} names; its columns: {', '.join(header)}")
        return header.index(given) if given else next((names.index(name) for name in known if name in names), None)

    photo = find(photo_column, "--photo_column", _PHOTO_COLUMNS)
    if photo is None:
        raise InputError(
            f"{path}: none of the columns ({', '.join(header)}) has a known name for photos "
            f"({', '.join(_PHOTO_COLUMNS)}); the first line must be a header such as image,labels; "
            "--photo_column names a column"
        )
    labels, split = find(label_column, "--label_column", _LABEL_COLUMNS), find("", "", _SPLIT_COLUMNS)
    others = [column for column in range(len(header)) if column not in (photo, labels, split)]
    indicators = [column for column in others if labels is None and not _UNNAMED.fullmatch(names[column])]
    if labels is None and not indicators:
        raise InputError(
            f"{path}: no column has a known name for labels ({', '.join(_LABEL_COLUMNS)}); --label_column names one"
        )
    unused = [column for column in others if column not in indicators and names[column]]
    return _Columns(photo, labels, split, indicators, unused)


def _choose_separator(rows: list[list[str]], header: list[str], columns: _Columns, given: str) -> str:
    if given:
        return "" if given == "none" else given
    filled = [cell for cells in rows if (cell := cells[columns.labels].strip())]
    if filled and all(cell[0] == "[" and cell[-1] == "]" for cell in filled):
        return _LISTS
    if sign := next((sign for sign in "|;," if any(sign in cell for cell in filled)), ""):
        return sign
    repeated = len({cells[columns.photo] for cells in rows}) < len(rows)
    return "" if header[columns.labels].lower() in _ONE_LABEL or repeated else " "


def _split_name(cells: list[str], columns: _Columns) -> str | None:
    """Returns the split of a row; "" if the table has no column of splits, None if the split is unknown."""
    return "" if columns.split is None else SPLIT_NAMES.get(cells[columns.split].strip().lower())


def _indicated_labels(cells: list[str], header: list[str], columns: _Columns) -> tuple[str, ...]:
    values = {header[column]: cells[column].strip().lower() for column in columns.indicators}
    for label, value in values.items():
        if value not in (*_YES, *_NO):
            raise ValueError(
                f"column {label!r} holds {value!r:.40}; each column beside photos and splits is read as a label "
                "with values 0 and 1; --label_column names a column of labels instead"
            )
    return tuple(label for label, value in values.items() if value in _YES)


def _split_labels(cell: str, separator: str) -> tuple[str, ...]:
    if not cell:
        return ()
    if separator == _LISTS:
        try:
            names = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{cell!r:.60} is not a list of labels")
    elif separator == " ":
        names = cell.split()
    else:
        names = cell.strip(separator + " ").split(separator) if separator else [cell]
    names = [name.strip() for name in names]
    if not all(names):
        raise ValueError(f"an empty label in {cell!r:.60}")
    return tuple(dict.fromkeys(names))
