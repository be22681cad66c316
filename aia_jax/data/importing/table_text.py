"""Splits the text of a table into header and rows; see `read_rows`."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_text

_DELIMITERS = (",", ";", "\t", "|")

Row = tuple[int, list[str]]  # line number, and one cell per column


class TableText(NamedTuple):
    """The header, the rows that are not empty and have a cell per column, and one line for each other row.

    `failure` says why the text cannot be parsed with this delimiter.
    """

    header: list[str]
    rows: list[Row]
    delimiter: str
    problems: list[str]
    failure: str = ""


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
    text = read_text(path, encoding=encoding)
    named = re.match(r'"?sep=([^\w\n"])"?[,;\t|]*\n', text)  # written by Excel
    text = text[named.end() - 1 :] if named else text
    delimiter = "\t" if delimiter.lower() in ("tab", "\\t") else delimiter or (named[1] if named else "")
    if len(delimiter) > 1 or delimiter in ('"', "\n", "\r"):
        raise InputError(f"--delimiter {delimiter!r} must be one character, such as ';', or tab")
    first = text.lstrip("\n ").partition("\n")[0]
    signs = [delimiter] if delimiter else [sign for sign in _DELIMITERS if sign in first] or [","]
    tables = [_parse(path, text, sign) for sign in signs]

    def fit(table: TableText) -> tuple[int, bool, int]:
        known = num_known(table.header)
        # Without a known name, the table is refused. Then most columns tell the user most.
        return min(known, 1), not (table.problems or table.failure), known or len(table.header)

    table, *others = sorted(tables, key=fit, reverse=True)
    if others and fit(others[0]) == fit(table) and num_known(table.header):
        shown = [
            f"\n  --delimiter {'tab' if one.delimiter == chr(9) else repr(one.delimiter)}: columns {one.header}"
            for one in tables
            if fit(one) == fit(table)
        ]
        raise InputError(f"{path} can be read with several delimiters; --delimiter chooses:{''.join(shown)}")
    if table.failure:
        raise InputError(table.failure)
    return table


def _parse(path: Path, text: str, delimiter: str) -> TableText:
    rows: list[Row] = []
    line, failure = 1, ""
    try:
        text = re.sub(f'" +(?={re.escape(delimiter)}|\r?$)', '"', text, flags=re.MULTILINE)  # no blanks after quotes
        lines, skip = io.StringIO(text, newline=""), delimiter != " "
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=skip, strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        failure = f"{path}:{line} is not a row of a table: {error}; check its quotes"
    if not rows:
        empty = f"{path} is empty; expected a header such as image,labels and a row for each photo"
        return TableText([], [], delimiter, [], failure or empty)
    header = [cell.strip() for cell in rows[0][1]]
    while not header[-1] and not any(cell.strip() for _, cells in rows for cell in cells[len(header) - 1 :]):
        header.pop()
    good, problems = [], []
    for line, cells in rows[1:]:
        kept = cells if any(cell.strip() for cell in cells[len(header) :]) else cells[: len(header)]
        if len(kept) == len(header):
            good.append((line, kept))
            continue
        problems.append(
            f"{path.name}:{line}: {len(cells)} cells, but the header has {len(header)}; a cell that holds "
            f"{delimiter!r} must be in quotes"
        )
    return TableText(header, good, delimiter, problems, failure)
