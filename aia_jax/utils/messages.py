"""Formats text for messages: counts, lists of problems, similar names and printable names."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

MAX_LISTED = 20
_MOST_COMPARED, _LONGEST_COMPARED = 10_000, 100  # `nearest` compares at most so many names, and characters of a name


def format_count(number: int, noun: str) -> str:
    """Returns a number with its noun, such as `1 label` or `2,000 labels`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def spreadsheet_text(text: str) -> str:
    """Returns a text for a CSV cell. A quote is put before a text that a spreadsheet would run as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def spreadsheet_path(name: str) -> str:
    """Returns a relative path for a CSV cell, with "./" before a name that a spreadsheet would run as a formula."""
    return f"./{name}" if spreadsheet_text(name) != name else name


def list_problems(problems: Sequence[str], limit: int = MAX_LISTED) -> str:
    """Returns the first `limit` problems, one per line, and the number of further problems."""
    lines = list(problems[:limit])
    if len(problems) > len(lines):
        lines.append(f"... and {len(problems) - len(lines):,} more")
    return "".join(f"\n  {line}" for line in lines)


def differences(there: Mapping[str, Any], here: Mapping[str, Any], where: str) -> list[str]:
    """Returns a line for each name whose values differ, such as "epochs: 3 there, 4 given" for `where` = "given"."""
    return [
        f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} {where}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def nearest(name: str, known: Collection[str], number: int = 1) -> list[str]:
    """Returns the names in `known` that are similar to `name`. Returns [] if the search would take too long."""
    if len(known) > _MOST_COMPARED:
        return []
    return difflib.get_close_matches(name[:_LONGEST_COMPARED], known, n=number)


def printable(name: str) -> str:
    """Returns a form of a file name that is safe to print on a terminal."""
    return name if name.isprintable() else repr(name)
