"""Splits the text of a table into header and rows; see `read_rows`."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from aia_jax.data.photo_folder import SUFFIXES
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_text

_DELIMITERS = (",", ";", "\t", "|")

Row = tuple[int, list[str]]  # line number, and one cell per column


class TableText(NamedTuple):
    """The header, the rows that are not empty and have a cell per column, and one line for each other row."""

    header: list[str]
    rows: list[Row]
    delimiter: str
    problems: list[str]


def read_rows(path: Path, num_known: Callable[[list[str]], int], *, encoding: str, delimiter: str) -> TableText:
    """Reads header and rows of a table.

    The delimiter is the comma, semicolon, tab or "|" that gives all rows as many cells as the header. A first line such
    as "sep=;" names the delimiter. Empty cells at the end of rows are ignored if the header has no name for them.

    Args:
        num_known: function that counts the column names with a known meaning in a header.
        encoding: encoding of the file; "": see `read_text`.
        delimiter: one character, or "tab"; "": the rule above applies.

    Raises:
        InputError: the file cannot be read or is not a table, or two delimiters are possible.
    """
    with path.open("rb") as file:
        if file.read(4) == b"PK\3\4":
            raise InputError(f"{path} is a spreadsheet file or an archive, not text; save the table as CSV in UTF-8")
    text = read_text(path, encoding=encoding)
    named = re.match(r'"?sep=([^\n])"?[,;\t|]*\n', text)  # written by Excel
    text = text[named.end() - 1 :] if named else text
    first = next((line for line in text.splitlines() if line.strip()), None)
    if first is None:
        raise InputError(f"{path} is empty; expected a header such as image,labels and a row for each photo")
    delimiter = "\t" if delimiter.lower() in ("tab", "\\t") else delimiter
    if len(delimiter) > 1 or delimiter in ('"', "\n", "\r"):
        raise InputError(f"--delimiter {delimiter!r} must be one character, such as ';', or tab")
    signs = [delimiter or (named and named[1]) or ""]
    if not signs[0]:
        signs = [sign for sign in _DELIMITERS if sign in first] or [","]
    tables = [_parse(path, text, sign) for sign in signs]
    # A table that cannot be parsed is an InputError. It is raised only if no other delimiter fits better.
    headers = [
        next(csv.reader([first[:100_000]], delimiter=sign)) if isinstance(table, InputError) else table.header
        for sign, table in zip(signs, tables, strict=True)
    ]
    fits = [
        (min(num_known(header), 1), not isinstance(table, InputError) and not table.problems, num_known(header))
        for header, table in zip(headers, tables, strict=True)
    ]
    best = [number for number, fit in enumerate(fits) if fit == max(fits)]
    if not max(fits)[0] and len(best) > 1:  # no known name: by the number of columns, as a refusal names them
        best = [max(best, key=lambda number: len(headers[number]))]
    if len(best) > 1:
        shown = [f"\n  --delimiter {_flag(signs[number])}: columns {_quoted(headers[number])}" for number in best]
        raise InputError(f"{path} can be read with several delimiters; --delimiter chooses:{''.join(shown)}")
    table = tables[best[0]]
    if isinstance(table, InputError):
        raise table
    if not num_known(table.header) and table.header[0].lower().endswith(SUFFIXES):
        raise InputError(
            f"{path}: the first line must be a header, but starts with a photo, {table.header[0]!r}; add a first line "
            f"such as image{table.delimiter}labels"
        )
    return table


def _parse(path: Path, text: str, delimiter: str) -> TableText | InputError:
    rows: list[Row] = []
    line = 1
    try:
        text = re.sub(f'" +(?={re.escape(delimiter)}|\r?$)', '"', text, flags=re.MULTILINE)  # no blanks after quotes
        skip = delimiter != " "
        lines = io.StringIO(text, newline="")
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=skip, strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        return InputError(f"{path}:{line} is not a row of a table: {error}; check its quotes")
    header = [cell.strip() for cell in rows[0][1]]
    while not header[-1] and not any(cell.strip() for _, cells in rows for cell in cells[len(header) - 1 :]):
        header.pop()
    good, problems = [], []
    for line, cells in rows[1:]:
        filled = cells[: len(header)] if not any(cell.strip() for cell in cells[len(header) :]) else cells
        if len(filled) == len(header):
            good.append((line, filled))
            continue
        problems.append(
            f"{path.name}:{line}: {len(cells)} cells, but the header has {len(header)}; a cell that holds "
            f"{delimiter!r} must be in quotes"
        )
    return TableText(header, good, delimiter, problems)


def _flag(delimiter: str) -> str:
    return "tab" if delimiter == "\t" else f'"{delimiter}"'


def _quoted(cells: list[str]) -> str:
    return ", ".join(map(repr, cells))
