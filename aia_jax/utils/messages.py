"""Text for messages: counts, lists of problems, similar names, printable names."""

import difflib
from collections.abc import Collection, Sequence

MAX_LISTED = 20
_MOST_COMPARED, _LONGEST_COMPARED = 10_000, 100  # names, and characters of one


def format_count(number: int, noun: str) -> str:
    """`1 label`, `2,000 labels`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def list_problems(problems: Sequence[str]) -> str:
    """The first `MAX_LISTED` problems, one per line, and the number of the others."""
    lines = list(problems[:MAX_LISTED])
    if len(problems) > len(lines):
        lines.append(f"... and {len(problems) - len(lines):,} more")
    return "".join(f"\n  {line}" for line in lines)


def nearest(name: str, known: Collection[str], number: int = 1) -> list[str]:
    """Names in `known` that are similar to `name`, for hints. Returns none if the search would take long."""
    if len(known) > _MOST_COMPARED:
        return []
    return difflib.get_close_matches(name[:_LONGEST_COMPARED], known, n=number)


def printable(name: str) -> str:
    """A file name that is safe to print on a terminal."""
    return name if name.isprintable() else repr(name)
