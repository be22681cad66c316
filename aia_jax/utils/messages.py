"""Formats text for messages: counts, lists of problems, similar names and printable names."""

import difflib
from collections.abc import Collection, Sequence

MAX_LISTED = 20
_MOST_COMPARED, _LONGEST_COMPARED = 10_000, 100  # largest number of names, and of characters in a name


def format_count(number: int, noun: str) -> str:
    """Returns a number with its noun, such as `1 label` or `2,000 labels`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def list_problems(problems: Sequence[str]) -> str:
    """Returns the first `MAX_LISTED` problems, one per line, and the number of further problems."""
    lines = list(problems[:MAX_LISTED])
    if len(problems) > len(lines):
        lines.append(f"... and {len(problems) - len(lines):,} more")
    return "".join(f"\n  {line}" for line in lines)


def nearest(name: str, known: Collection[str], number: int = 1) -> list[str]:
    """Returns the names in `known` that are similar to `name`. Returns [] if the search would take too long."""
    if len(known) > _MOST_COMPARED:
        return []
    return difflib.get_close_matches(name[:_LONGEST_COMPARED], known, n=number)


def printable(name: str) -> str:
    """Returns a form of a file name that is safe to print on a terminal."""
    return name if name.isprintable() else repr(name)
