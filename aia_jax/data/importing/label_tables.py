"""Reads labels of photos from text tables of many layouts; see `read_table`."""

import functools
import re
from collections.abc import Callable, Sequence
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from aia_jax.data.importing.labelled_photos import SPLIT_NAMES, LabelList, LabelRow, leave_out_different
from aia_jax.data.importing.table_text import LISTS, TableText, choose_separator, read_rows, split_cell
from aia_jax.data.photo_files import SUFFIXES
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import list_problems

_PHOTO_COLUMNS = ("image", "image_name", "image_id", "image_path", "file_name", "file", "file_path", "path", "photo")
_PHOTO_COLUMNS += ("name", "source_file")
_ONE_LABEL = ("label", "tag", "keyword", "class", "category", "choice", "label_name", "class_name", "category_name")
_LABEL_COLUMNS = ("labels", "image_labels", "tags", "keywords", "classes", "categories", "choices", *_ONE_LABEL)
_SPLIT_COLUMNS = ("split", "subset", "partition", "set")
_UNNAMED = re.compile(r"(unnamed:\d+)?")  # the name that pandas gives to a column of row numbers
_DESCRIPTIONS = {"": "one per cell", " ": "separated by blanks", LISTS: "lists"}  # descriptions of separators
_YES = ("1", "true", "t", "yes", "y", "x", "✓", "positive", "present", "correct", "wahr", "ja", "vrai", "oui")
_NO = ("0", "-1", "false", "f", "no", "n", "", "nan", "na", "negative", "absent", "incorrect", "falsch", "nein", "faux")
_NO += ("non",)
_ROWS = re.compile("conf|score|verif|absent|is.?(valid|train|test)")  # the same for columns beside columns of 0 and 1
_AUTHORS = re.compile("annotator|worker|rater|labell?er|user")
_NEGATIVE = re.compile("absent|negat|reject|delet|cancel|invalid|wrong")
_WEIGHTS = re.compile(  # names of columns that say which rows count
    rf"{_NEGATIVE.pattern}|conf|score|prob(?!lem)|likelihood|certain|verif|presen|(^|[^a-z]|is)(valid|value|positive)"
    r"|exists|weight|votes|agreement|accept|approv|correct|status|(^|[^a-z])state|review|group.?of|^answer$"
)
_MAX_VALUES = 5  # most values of a text column that says which rows count, such as high, medium and low
_COMPARISONS = {"=": eq, "!=": ne, ">=": ge, "<=": le, ">": gt, "<": lt}


class _Columns(NamedTuple):
    """Indices of columns. If `labels` is None, each column in `indicators` is a label with the values 0 and 1."""

    photo: int
    labels: int | None
    split: int | None
    indicators: list[int]
    unused: list[int]


def read_table(
    path: Path,
    *,
    photo_column: str = "",
    label_column: str = "",
    separator: str = "",
    encoding: str = "",
    delimiter: str = "",
    rows: Sequence[str] = (),
    ignore_columns: Sequence[str] = (),
) -> LabelList:
    """Reads labels from a text table with a header.

    Columns are found by their names in upper or lower case: photos ("image", "file_name", ...), labels ("labels",
    "tags", ...) and splits ("split", "subset", ...). Without a column of labels, each remaining column is a label with
    the values 0 and 1. `read_rows` explains `encoding` and `delimiter`.

    Args:
        separator: text between two labels in a cell; "none": a cell is one label; "": see `choose_separator`.
        rows: conditions such as "Confidence >= 0.5", of which each row that counts meets all.

    Raises:
        InputError: the file cannot be read, a column is missing, or there are two ways to read the table.
    """
    known = {_key(name) for name in (*_PHOTO_COLUMNS, *_LABEL_COLUMNS, *_SPLIT_COLUMNS, photo_column, label_column)}
    table = read_rows(path, lambda header: sum(_key(name) in known - {""} for name in header), encoding, delimiter)
    num_rows, header = len(table.rows), table.header
    ignored = [_index(table, name, "--ignore_columns") for name in ignore_columns]
    for condition in rows:
        table, column = _matching(table, condition)
        ignored.append(column)
    columns = _find_columns(table, photo_column, label_column, ignored)
    if not rows:
        _ask_about_rows(table, columns)
    if columns.labels is None:
        values = {_value(cells[column]) for _, cells in table.rows for column in columns.indicators}
        unsure = [value for value in sorted(values) if _is_number(value) and 0 < abs(float(value)) < 1]
        unsure += ["-1 beside 0 or blank cells"] if "-1" in values and values & {"0", ""} else []
        if unsure:
            how = "write 1 where the label holds and 0 elsewhere; --ignore_columns leaves out columns"
            raise InputError(f"{path}: the columns of labels hold {unsure[0]}; {how}")
        how = f"{len(columns.indicators):,} columns of 0 and 1 as labels"
    else:
        separator = "" if separator == "none" else separator or _find_separator(table, columns)
        description = _DESCRIPTIONS.get(separator, f"separated by {separator!r}")
        how = f"labels in column {header[columns.labels]!r}, {description}"
    found, problems = [], table.problems
    for line, cells in table.rows:
        where = f"{path.name}:{line}"
        try:
            part = "" if columns.split is None else cells[columns.split].strip()
            if columns.split is not None and part.lower() not in SPLIT_NAMES:
                raise ValueError(f"split {part!r:.40} is unknown; known: {', '.join(SPLIT_NAMES)}")
            if columns.labels is None:
                labels = _indicated_labels(cells, header, columns)
            else:
                labels = split_cell(cells[columns.labels].strip(), separator)
            found.append(LabelRow(where, cells[columns.photo].strip(), labels, SPLIT_NAMES.get(part.lower(), "")))
        except ValueError as problem:
            problems.append(f"{where}: {problem}")
    found = leave_out_different(found, problems) if columns.labels is None else found
    if not found:
        raise InputError(f"no photo can be used: {path} has no row that can be read{list_problems(problems)}")
    if columns.split is not None:
        how += f", splits in column {header[columns.split]!r}"
    if rows:
        how += f"; {len(table.rows):,} of {num_rows:,} rows have {' and '.join(rows)}"
    if columns.unused:
        how += f"; not used: {', '.join(repr(header[column]) for column in columns.unused)}"
    understood = f"{path}: separated by {table.delimiter!r}, photos in column {header[columns.photo]!r}, {how}"
    return LabelList(tuple(found), understood, tuple(problems))


def select_records(path: Path, records: list, fields: Sequence[str], rows: Sequence[str]) -> list[tuple[int, Any]]:
    """Selects objects of JSON as `read_table` selects rows. Returns them with their numbers, from 1.

    Args:
        fields: the field of the photo, the field of the labels, and fields that may say which objects count.
        rows: conditions, of which each object that counts meets all.

    Raises:
        InputError: there is no condition, but a field may say which objects count.
    """

    def cell(value: Any) -> str:
        return "" if value is None or isinstance(value, dict | list) else str(value)

    cells = [[cell(entry.get(field)) if isinstance(entry, dict) else "" for field in fields] for entry in records]
    table = TableText(path, "", list(fields), list(enumerate(cells, 1)), [])
    for condition in rows:
        table, _ = _matching(table, condition)
    if not rows:
        _ask_about_rows(table, _Columns(0, 1, None, [], list(range(2, len(fields)))))
    return [(number, records[number - 1]) for number, _ in table.rows]


def _key(name: str) -> str:
    """Returns the form of a column name that is compared with known names: a.ImageID and image_id become imageid."""
    return re.sub(r"[\s_-]+", "", name.lower().rpartition(".")[2])


def _index(table: TableText, name: str, flag: str) -> int:
    if name not in table.header:
        columns = ", ".join(table.header)
        raise InputError(f"{table.path} has no column {name!r}, which {flag} names; its columns: {columns}")
    return table.header.index(name)


def _find_columns(table: TableText, photo_column: str, label_column: str, ignored: list[int]) -> _Columns:
    path, header = table.path, table.header
    names = [_key(name) for name in header]
    left = [column for column in range(len(header)) if column not in ignored]

    def find(given: str, flag: str, known: Sequence[str], fits: Callable[[str], bool]) -> int | None:
        """Returns the column that a flag or its name gives. Cells decide between several, or InputError asks."""
        if given:
            return _index(table, given, flag)
        keys = [_key(name) for name in known]
        found = [column for key in dict.fromkeys(keys) for column in left if names[column] == key]
        columns = {column: [cell for _, cells in table.rows if (cell := cells[column].strip())] for column in found}
        if len(columns) > 1:
            fitting = {column: cells for column, cells in columns.items() if 2 * sum(map(fits, cells)) > len(cells)}
            columns = fitting or columns
        compared = {tuple(PurePosixPath(cell).name for cell in cells) for cells in columns.values()}
        if len(compared) > 1:
            shown = [f"\n  {flag} {header[column]}: {cells[0]!r:.60}" for column, cells in columns.items() if cells]
            raise InputError(f"{path}: several columns can be the one; choose one with {flag}:{''.join(shown)}")
        return next(iter(columns), None)

    photo = find(photo_column, "--photo_column", _PHOTO_COLUMNS, lambda cell: cell.lower().endswith(SUFFIXES))
    if photo is None:
        raise InputError(
            f"{path}: none of the columns ({', '.join(header)}) has a known name for photos "
            f"({', '.join(_PHOTO_COLUMNS)}); the first line must be a header such as image,labels; "
            "--photo_column names a column"
        )
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise InputError(f"{path}: two columns are called {twice[0]!r}")
    left = [column for column in left if column != photo]
    labels = find(label_column, "--label_column", _LABEL_COLUMNS, lambda cell: not _is_number(cell))
    numbered = [name for name in header if re.fullmatch(r"(label|tag|class|category|keyword|choice)s?\d+", _key(name))]
    if labels is None and numbered:
        raise InputError(f"{path}: join {', '.join(numbered)} into one column labels, whose cells are such as sky|sea")
    values = {column: {cells[column].strip().lower() for _, cells in table.rows} for column in left}
    splits = [column for name in _SPLIT_COLUMNS for column in left if names[column] == name]
    splits += [column for column in left if len(values[column]) > 1 and values[column] <= set(SPLIT_NAMES)]
    split = next((column for column in splits if column != labels), None)
    others = [column for column in left if column not in (labels, split)]
    indicators = [column for column in others if labels is None and not _UNNAMED.fullmatch(names[column])]
    unnamed = [column + 1 for column in others if column and column not in indicators]
    if unnamed and labels is None:
        raise InputError(f"{path}: column {unnamed[0]} has no name; write its label into the first line, or remove it")
    if labels is None and not indicators:
        raise InputError(
            f"{path}: no column has a known name for labels ({', '.join(_LABEL_COLUMNS)}); --label_column names one"
        )
    unused = [column for column in others if column not in indicators and names[column]]
    return _Columns(photo, labels, split, indicators, unused)


def _matching(table: TableText, condition: str) -> tuple[TableText, int]:
    """Returns the rows that meet a condition such as "Confidence >= 0.5", and the index of its column."""
    parts = re.fullmatch(r"(.+?)\s*(!=|>=|<=|=|>|<)=?\s*(.*)", condition.strip())
    if not parts:
        raise InputError(f"--rows {condition!r} must be a column, a comparison and a value: 'Confidence >= 0.5'")
    column = _index(table, parts[1], "--rows")
    kept = [row for row in table.rows if _meets(row[1][column], parts[2], parts[3])]
    return table._replace(rows=kept), column


def _meets(cell: str, comparison: str, value: str) -> bool:
    """Compares numbers as numbers, and other texts in lower case. A text is not larger or smaller than a number."""
    cell, value = _value(cell), _value(value)
    if _is_number(cell) and _is_number(value):
        return _COMPARISONS[comparison](float(cell), float(value))
    return comparison in ("=", "!=") and _COMPARISONS[comparison](cell, value)


def _ask_about_rows(table: TableText, columns: _Columns) -> None:
    """Raises InputError if a column, by its name or its values of 0 and 1, may say which rows count."""
    shown, names = [], []
    for column in (*columns.indicators, *columns.unused):
        name, values = table.header[column], {_value(cells[column]) for _, cells in table.rows}
        filled, flags = values - {""}, values <= {*_YES, *_NO}
        numbers = all(map(_is_number, filled))
        if columns.labels is None:  # a label may have any name
            asked = flags and len(columns.indicators) > 1 and _ROWS.search(name.lower())
        elif _AUTHORS.search(name.lower()):
            answers = {(cells[columns.photo], cells[column]) for _, cells in table.rows}
            asked = len(values) <= _MAX_VALUES and len(answers) > len({photo for photo, _ in answers})
        elif _WEIGHTS.search(name.lower()):
            few = filled and (numbers or len(values) <= _MAX_VALUES)
            asked = few and (_NEGATIVE.search(name.lower()) or not values <= {*_YES})
        else:
            asked = flags and values & {*_YES} and values & {*_NO} and not _UNNAMED.fullmatch(_key(name))
            asked = asked or ("0" in values and numbers and "count" in name.lower()) or values == {"", name.lower()}
        if asked:
            names.append(name)
            graded = numbers and (len(values) > _MAX_VALUES or "." in "".join(values))
            conditions = [(">=", "0.5")] if graded else [("=", text) for text in sorted(values)]
            for compare, value in conditions:
                kept = sum(_meets(cells[column], compare, value) for _, cells in table.rows)
                shown.append(f'\n  --rows "{name} {compare} {value}": reads {kept:,} of {len(table.rows):,} rows')
    if names:
        splits = "; splits need a column split, with the values train and test"
        splits *= any(re.search("train|test|valid", name.lower()) is not None for name in names)
        raise InputError(
            f"{table.path}: {', '.join(map(repr, names))} may say which rows count; choose one:{''.join(shown)}\n"
            f"  --ignore_columns {' '.join(map(repr, names))}: reads all rows"
            f"{'; a label needs another name' if columns.labels is None else ''}{splits}"
        )


def _find_separator(table: TableText, columns: _Columns) -> str:
    filled = [cell for _, cells in table.rows if (cell := cells[columns.labels].strip())]
    name = table.header[columns.labels]
    repeated = len({cells[columns.photo] for _, cells in table.rows}) < len(table.rows)
    several = _key(name) not in map(_key, _ONE_LABEL)
    return choose_separator(filled, f"{table.path}: column {name!r}", several=several, repeated=repeated)


def _indicated_labels(cells: list[str], header: list[str], columns: _Columns) -> tuple[str, ...]:
    values = {header[column]: cells[column] for column in columns.indicators}
    if bad := {name: cell.strip() for name, cell in values.items() if _value(cell) not in (*_YES, *_NO)}:
        raise ValueError(
            f"column {', '.join(f'{name!r} holds {cell!r:.40}' for name, cell in bad.items())}; each column beside "
            "photos and splits is read as a label; write 1 where it holds and 0 elsewhere; "
            f"--label_column names a column of labels; --ignore_columns {' '.join(map(repr, bad))} leaves out columns"
        )
    return tuple(name for name, cell in values.items() if _value(cell) in _YES)


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?", text.strip().lower(), re.ASCII))


@functools.lru_cache
def _value(cell: str) -> str:
    """Returns the form of a cell that is compared: in lower case, 1.0 as 1, and 0,5 as 0.5."""
    text = cell.strip().lower()
    return str(float(text.replace(",", "."))).removesuffix(".0") if _is_number(text) else text
