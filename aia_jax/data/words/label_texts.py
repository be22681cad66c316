"""Reads labels with definitions for a text encoder, one per line: `name`, or `name: definition`."""

import functools
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from aia_jax.data.annotation.annotations import read_labels
from aia_jax.utils.errors import InputError

_SEPARATOR = ": "
_LONGEST = 200  # characters of a name
_TABLE_ROW = re.compile(r'^"|\t|[,;:](?![\s\d])')  # as in "dog,animal" and "dog:", but not in "1,000"


class LabelTexts(NamedTuple):
    """C labels.

    Attributes:
        names: the labels, each different.
        texts: the text of each label for a text encoder: its name, or "name: definition".
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]


def read_label_texts(source: Path | Sequence[str]) -> LabelTexts:
    """Reads a text file with a label per line, a JSON file, or a list; see `read_labels`.

    A definition tells the sense of a word: "crane: a large wading bird".

    Raises:
        InputError: the file cannot be read, has no labels, has rows of a table, or has equal, empty or very long names.
    """
    texts = read_labels(source)
    path = source if isinstance(source, Path) else "the list of labels"
    names = tuple(text.split(_SEPARATOR, 1)[0].strip() for text in texts)
    first_use: dict[str, int] = {}
    for index, name in enumerate(names):
        if not name:
            raise InputError(f"{path}: labels[{index}] {texts[index]!r:.80} has no name; expected name: definition")
        if len(name) > _LONGEST:
            raise InputError(f"{path}: the name of labels[{index}] {name!r:.60} is longer than {_LONGEST} characters")
        if _TABLE_ROW.search(name):
            raise InputError(
                f"{path}: labels[{index}] {texts[index]!r:.80} is like a row of a table; write a label as `name` or "
                "`name: definition`, without quotes, and with a space after each comma, semicolon and colon"
            )
        if (first := first_use.setdefault(name, index)) != index:
            raise InputError(
                f"{path}: labels[{index}] repeats the name {name!r:.80} of labels[{first}]; give each sense a name of "
                "its own, such as 'crane (bird)' and 'crane (machine)'"
            )
    return LabelTexts(names, texts)


@functools.cache
def everyday_labels() -> LabelTexts:
    """Returns the everyday vocabulary: visible things, places, activities and roles, in American English."""
    with resources.as_file(resources.files("aia_jax.data.words") / "everyday.txt") as path:
        return read_label_texts(path)
