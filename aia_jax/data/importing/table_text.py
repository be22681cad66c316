"""Splits the text of a table into rows, and the cells of a column into labels."""

import ast
import contextlib
import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from aia_jax.data.importing.label_names import label_names
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_text

_DELIMITERS = ",;\t|"
LISTS = "lists"
_SIGNS = "|;,"
_OTHER_SIGNS = re.compile(r"<br>|[^\w\s]+| and ")  # separators if all that they separate are whole cells elsewhere

Row = tuple[int, list[str]]  # line number, and one cell per column


class TableText(NamedTuple):
    """The header, the rows that are not empty and have a cell per column, and one line for each other row."""

    path: Path
    delimiter: str
    header: list[str]
    rows: list[Row]
    problems: list[str]


def read_rows(path: Path, num_known: Callable[[list[str]], int], encoding: str, delimiter: str) -> TableText:
    """Reads header and rows of a table.

    The delimiter is the comma, semicolon, tab or "|" that gives the header the most known names. A first line such as
    "sep=;" names the delimiter. Empty cells at the end of rows are ignored if the header has no name for them.

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
    headers = {sign: [cell.strip(' "') for cell in first.split(sign)] for sign in signs}
    most = max(map(num_known, headers.values()))
    best = [sign for sign, header in headers.items() if num_known(header) == most]
    if most and len(best) > 1:
        shown = [f"\n  --delimiter {'tab' if sign == chr(9) else repr(sign)}: columns {headers[sign]}" for sign in best]
        raise InputError(f"{path} can be read with several delimiters; --delimiter chooses:{''.join(shown)}")
    delimiter = max(best, key=first.count)
    rows: list[Row] = []
    line = 1
    try:
        text = re.sub(f'" +(?={re.escape(delimiter)}|\r?$)', '"', text, flags=re.MULTILINE)  # no blanks after quotes
        lines, skip = io.StringIO(text, newline=""), delimiter != " "
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=skip, strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{line} is not a row of a table: {error}; check its quotes") from None
    if not rows:
        raise InputError(f"{path} is empty; expected a header such as image,labels and a row for each photo")
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
    return TableText(path, delimiter, header, good, problems)


def choose_separator(cells: Sequence[str], where: str, *, several: bool, repeated: bool) -> str:
    """Returns the separator of the labels in the cells; "": each cell is one label, `LISTS`: lists as JSON or Python.

    1. If a cell is a list, such as `["sky"]` or `{"choices": ["sky"]}`, cells are lists or one label.
    2. "|", ";" or "," separates labels if it is the only one in the cells, and what it separates also occurs elsewhere:
       as a whole cell, or at another place in a cell. "|" and ";" do not need this evidence if `several` and not
       `repeated`.
    3. Spaces separate labels if all words are also whole cells, if `several`, and not `repeated`. Line ends always do.
    4. Other signs, such as "#", are never chosen: the message asks about them.

    Args:
        where: name of the column, for messages.
        several: whether the name of the column stands for several labels, such as "labels".
        repeated: whether photos have several rows.

    Raises:
        InputError: there are two readings. The message shows both, and the values of `--separator`.
    """
    cells = list(dict.fromkeys(cells))
    if any(_names_of(cell) is not None for cell in cells) or (cells and all(map(_has_brackets, cells))):
        return LISTS
    signs = [sign for sign in _SIGNS if any(sign in cell for cell in cells)]
    known = set(cells)
    for cell in cells:
        for sign in sorted({*_OTHER_SIGNS.findall(cell)}.difference(_SIGNS, signs)):
            if len(parts := _parts(cell, sign)) > 1 and known.issuperset(parts):
                signs.append(sign)
    if not signs and any("\n" in cell for cell in cells):
        return "\n"
    if not signs and (repeated or not any(" " in cell for cell in cells)):
        return ""
    shares = {sign: _evidence(cells, sign) for sign in signs or " "}
    strong = [sign for sign, share in shares.items() if share >= 0.5]
    if not signs and (shares[" "] == 1 if several else not strong):
        return " " if several else ""
    if signs:
        clear = strong if not any(share for sign, share in shares.items() if sign not in strong) else []
        if not strong and signs in (["|"], [";"]) and several and not repeated:
            clear = signs
        if len(clear) == 1 and clear[0] in _SIGNS:
            parts = list(dict.fromkeys(part for cell in cells for part in _parts(cell, clear[0])))
            if not several or _evidence(parts, " ") < 0.5:  # else "sky sea" may be two labels beside "sky, sea"
                return clear[0]
            shares[" "] = 0
    examples = sorted(cells, key=lambda cell: -sum(sign in cell for sign in shares))[:2]
    options = [("none", ""), *((f'"{sign}"', sign) for sign in shares)]
    shown = [
        f"\n  --separator {flag}: " + "  and  ".join(" | ".join(map(repr, _parts(cell, sign))) for cell in examples)
        for flag, sign in options
    ]
    raise InputError(f"{where}: the cells can be read in several ways; --separator chooses:{''.join(shown)}")


def split_cell(cell: str, separator: str) -> tuple[str, ...]:
    """Returns the labels of a cell without repeats.

    Raises:
        ValueError: the cell has an empty label, or is not a list.
    """
    if separator == LISTS:
        names = _names_of(cell)
        if names is None and (_has_brackets(cell) or any(sign in cell for sign in _SIGNS)):
            raise ValueError(f'{cell!r:.60} is not a list of labels, such as ["sky", "sea"]')
        names = [cell] if names is None and cell else names or []
    else:
        names = _parts(cell, separator)
    names = [name.strip() for name in names]
    if not all(names):
        raise ValueError(f"an empty label in {cell!r:.60}")
    return tuple(dict.fromkeys(names))


def _parts(cell: str, separator: str) -> list[str]:
    if not separator.strip(" ") or not cell:
        return cell.split() if separator else [cell] * bool(cell)
    parts = cell.split(separator)
    if separator in _SIGNS and re.search(f'(^|{re.escape(separator)}) *"', cell) and "\n" not in cell:
        parts = next(csv.reader([cell], delimiter=separator, skipinitialspace=True))
    filled = [index for index, part in enumerate(parts) if part.strip()]
    return [part.strip() for part in parts[filled[0] : filled[-1] + 1]] if filled else [""]


def _evidence(cells: Sequence[str], sign: str) -> float:
    """Returns the share of cells with `sign` whose parts also occur as a whole cell, or at another place in a cell.

    With spaces, all parts must be whole cells, as in "polar bear" and "bear" a space does not separate labels.
    """
    places = defaultdict(set)
    split = [_parts(cell, sign) for cell in cells]
    for parts in split:
        for index, part in enumerate(parts):
            places[part].add((index == 0, index == len(parts) - 1))
    whole = {parts[0] for parts in split if len(parts) == 1}
    moving = {part for part, found in places.items() if len(found) > 1} | whole
    several = [parts for parts in split if len(parts) > 1]
    count = sum(whole.issuperset(parts) if sign == " " else not moving.isdisjoint(parts) for parts in several)
    return count / max(len(several), 1)


def _has_brackets(cell: str) -> bool:
    return (cell[:1], cell[-1:]) in (("[", "]"), ("{", "}"), ("(", ")"))


def _names_of(cell: str) -> tuple[str, ...] | None:
    """Returns the labels of a cell that is a list in the syntax of JSON, Python or NumPy; None if it is none."""
    errors = contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError)
    if _has_brackets(cell):
        with errors:
            return label_names(json.loads(cell))
        with errors:  # NumPy writes ['sky' 'sea'], which Python reads as one text
            return label_names(ast.literal_eval(re.sub(r"""(['"])\s+(?=['"])""", r"\1, ", cell)))
    return None
