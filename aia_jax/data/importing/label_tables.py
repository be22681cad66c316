"""Tables of labels as text, in the forms that users have them; see `read_table`."""

import ast
import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from aia_jax.data.importing.label_lists import SPLIT_NAMES, LabelList, LabelRow
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_text

_PHOTO_COLUMNS = ("image", "image_name", "image_id", "image_path", "filename", "file_name", "file", "filepath")
_PHOTO_COLUMNS += ("file_path", "path", "photo", "name")
_ONE_LABEL = ("label", "tag", "keyword", "class", "category")
_LABEL_COLUMNS = ("labels", "image_labels", "tags", "keywords", "classes", "categories", *_ONE_LABEL)
_SPLIT_COLUMNS = ("split", "subset", "partition", "set")
_UNNAMED = re.compile(r"(unnamed:_\d+)?")  # of pandas, the numbers of its rows
_DELIMITERS = (",", ";", "\t", "|")
_LISTS = "lists"
_SAID = {"": "one a cell", " ": "parted by blanks", _LISTS: "lists"}  # of separators
_YES, _NO = ("1", "1.0", "true", "yes", "x"), ("0", "0.0", "-1", "false", "no", "")

Row = tuple[int, list[str], str]  # line, cells, split
Labels = tuple[tuple[str, ...], str]  # of a row, and what is wrong with it


class _Table(NamedTuple):
    """A header and (line, cells) of every row that is not empty; a cell for each column."""

    header: list[str]
    rows: list[tuple[int, list[str]]]
    delimiter: str


class _Columns(NamedTuple):
    """Which columns hold what; `labels` None: each of `indicators` is a label, that holds 0 or 1."""

    photo: int
    labels: int | None
    split: int | None
    indicators: list[int]
    unused: list[int]


def read_table(path: Path, *, photo_column: str = "", label_column: str = "", separator: str = "") -> LabelList:
    """Reads labels from a text table with a header, UTF-8 with or without a byte-order mark.

    The delimiter is that of , ; tab and | which parts the header most. Columns are known by their names, in whatever
    case: photos ("image", "file_name", ...), labels ("labels", "tags", "label", ...) and splits ("split", "subset",
    ...). Without a column of labels each other column is a label and holds 0 or 1.

    Labels of a cell are a list as Python or JSON writes it if all cells are one; else they are parted by | or by ; or
    by a comma, the first that is in any cell; else by blanks, if the column's name is a plural and no photo has two
    rows; else a cell is one label.

    Args:
        photo_column, label_column: names of columns that are called otherwise.
        separator: of the labels of a cell; "none": a cell is one label; "": as told above.

    Raises:
        InputError: it cannot be read, or has no such columns.
    """
    problems: list[str] = []
    table = _parse(path, problems)
    columns = _find_columns(path, table.header, photo_column, label_column)
    rows = list(_rows(path, table, columns, problems))
    if columns.labels is None:
        how, labels = (
            f"{len(columns.indicators):,} columns of 0 and 1 as labels",
            _indicated(path, rows, table, columns),
        )
    else:
        how, labels = _listed(path, rows, table, columns, separator)
    found = []
    for (line, cells, split), (names, problem) in zip(rows, labels, strict=True):
        if problem:
            problems.append(problem)
        else:
            found.append(LabelRow(f"{path.name}:{line}", cells[columns.photo].strip(), names, split))
    understood = f"{path}: parted by {table.delimiter!r}, photos in column {table.header[columns.photo]!r}, {how}"
    if columns.split is not None:
        understood += f", splits in column {table.header[columns.split]!r}"
    if columns.unused:
        understood += f"; not used: {', '.join(repr(table.header[column]) for column in columns.unused)}"
    return LabelList(tuple(found), understood, tuple(problems))


def _parse(path: Path, problems: list[str]) -> _Table:
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), None)
    if first is None:
        raise InputError(f"{path} is empty; expected a header such as image,labels and a row for each photo")
    header, rows, line = [], [], 1
    try:
        delimiter = max(_DELIMITERS, key=lambda sign: len(next(csv.reader([first], delimiter=sign))))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if not header:
                    header = [cell.strip() for cell in cells]
                elif len(cells) != len(header):
                    problems.append(
                        f"{path.name}:{line}: {len(cells)} cells, but the header has {len(header)}; a cell that holds "
                        f"{delimiter!r} must stand in quotes"
                    )
                else:
                    rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{line} is no row of a table: {error}") from None
    return _Table(header, rows, delimiter)


def _find_columns(path: Path, header: list[str], photo_column: str, label_column: str) -> _Columns:
    names = [re.sub(r"[\s-]+", "_", name.lower()) for name in header]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise InputError(f"{path}: two columns are called {twice[0]!r}")

    def find(given: str, flag: str, known: Sequence[str]) -> int | None:
        if given and given not in header:
            raise InputError(f"{path} has no column {given!r}, which {flag} names; its columns: {', '.join(header)}")
        return header.index(given) if given else next((names.index(name) for name in known if name in names), None)

    photo = find(photo_column, "--photo_column", _PHOTO_COLUMNS)
    if photo is None:
        raise InputError(
            f"{path}: none of the columns ({', '.join(header)}) is called as photos' are "
            f"({', '.join(_PHOTO_COLUMNS)}); the first line must be a header such as image,labels; "
            "--photo_column names a column"
        )
    labels, split = find(label_column, "--label_column", _LABEL_COLUMNS), find("", "", _SPLIT_COLUMNS)
    others = [column for column in range(len(header)) if column not in (photo, labels, split)]
    indicators = [column for column in others if labels is None and not _UNNAMED.fullmatch(names[column])]
    if labels is None and not indicators:
        raise InputError(
            f"{path}: no column is called as labels' are ({', '.join(_LABEL_COLUMNS)}); --label_column names one"
        )
    unused = [column for column in others if column not in indicators and names[column]]
    return _Columns(photo, labels, split, indicators, unused)


def _rows(path: Path, table: _Table, columns: _Columns, problems: list[str]) -> Iterator[Row]:
    """The rows whose split is known."""
    for line, cells in table.rows:
        split = "" if columns.split is None else cells[columns.split].strip()
        if columns.split is not None and split.lower() not in SPLIT_NAMES:
            problems.append(f"{path.name}:{line}: split {split!r:.40} is unknown; known: {', '.join(SPLIT_NAMES)}")
        else:
            yield line, cells, SPLIT_NAMES.get(split.lower(), "")


def _indicated(path: Path, rows: list[Row], table: _Table, columns: _Columns) -> list[Labels]:
    found: list[Labels] = []
    for line, cells, _ in rows:
        values = {table.header[column]: cells[column].strip().lower() for column in columns.indicators}
        unfit = next((label for label, value in values.items() if value not in (*_YES, *_NO)), None)
        labels = tuple(label for label, value in values.items() if value in _YES)
        problem = ""
        if unfit is not None:
            problem = (
                f"{path.name}:{line}: column {unfit!r} holds {values[unfit]!r:.40}; each column beside photos and "
                "splits is taken for a label, which holds 0 or 1; --label_column names a column of labels instead"
            )
        found.append((labels, problem))
    return found


def _listed(path: Path, rows: list[Row], table: _Table, columns: _Columns, given: str) -> tuple[str, list[Labels]]:
    """How the labels' cells were read, and what they hold."""
    column, cells = table.header[columns.labels], [cells[columns.labels].strip() for _, cells, _ in rows]
    repeated = len({cells[columns.photo] for _, cells, _ in rows}) < len(rows)
    separator = ("" if given == "none" else given) if given else _separator(cells, column, repeated)
    how = f"labels in column {column!r}, {_SAID.get(separator, f'parted by {separator!r}')}"
    return how, [
        _parted(f"{path.name}:{line}", cell, separator) for (line, _, _), cell in zip(rows, cells, strict=True)
    ]


def _separator(cells: list[str], column: str, repeated: bool) -> str:
    filled = [cell for cell in cells if cell]
    if filled and all(cell[0] == "[" and cell[-1] == "]" for cell in filled):
        return _LISTS
    for sign in ("|", ";", ","):
        if any(sign in cell for cell in filled):
            return sign
    return "" if column.lower() in _ONE_LABEL or repeated else " "


def _parted(where: str, cell: str, separator: str) -> Labels:
    if not cell:
        return (), ""
    if separator == _LISTS:
        try:
            names = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return (), f"{where}: {cell!r:.60} is no list of labels"
    elif separator == " ":
        names = cell.split()
    else:
        names = cell.strip(separator + " ").split(separator) if separator else [cell]
    names = [name.strip() for name in names]
    if not all(names):
        return (), f"{where}: an empty label in {cell!r:.60}"
    return tuple(dict.fromkeys(names)), ""
