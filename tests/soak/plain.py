"""Simple, independent readers of files, to compare the product with."""

import contextlib
import functools
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aia_jax.utils.errors import InputError
from tests.soak.mutation import encoded, write_damaged

NOTHING = object()  # the content of a file that must be refused


class Refused(Exception):
    """The product refused a case as it should."""


@contextlib.contextmanager
def may_refuse(*names: object, right: bool = True) -> Iterator[None]:
    """Turns an InputError into `Refused`, or into an AssertionError if it is not `right` or names none of `names`."""
    try:
        yield
    except InputError as error:
        named = str(error) and any(str(name) in str(error) for name in names or [""])
        if not right or not named:
            raise AssertionError(f"{'not named' if right else 'wrongly refused'}: {names} in {error}") from error
        raise Refused from error


def compare(expected: Any, read: Callable[[], Any], path: Path) -> None:
    """Checks that `read` returns `expected`, or that it refuses and names `path` if NOTHING is expected."""
    with may_refuse(path, right=expected is NOTHING):
        found = read()
    assert expected is not NOTHING, f"accepted: {found!r:.500}"
    assert found == expected, (found, expected)


def read_damaged(path: Path, content: Any, rng: random.Random, read: Callable, *args: Any) -> tuple[bytes, Any]:
    """Writes `content` with damage; returns the file, and `read(path, *args)`. Only a changed file may be refused."""
    data = write_damaged(path, content, rng)
    with may_refuse(path, right=data != encoded(content)):
        return data, read(path, *args)


def or_nothing(read: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a reader return NOTHING where it raises an error."""

    @functools.wraps(read)
    def reader(*args: Any) -> Any:
        try:
            return read(*args)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return NOTHING

    return reader


def text_of(data: bytes) -> str:
    """UTF-8, with or without a byte-order mark."""
    return data.decode("utf-8").removeprefix("\ufeff")


def lines_of(data: bytes) -> list[str]:
    """The lines of a text that are not blank."""
    return [line.strip() for line in text_of(data).splitlines() if line.strip()]


@or_nothing
def json_of(data: bytes) -> Any:
    """The content of a JSON file without repeated fields."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(text_of(data), object_pairs_hook=members)


def texts_of(value: Any) -> Iterator[str]:
    """All texts and numbers in a JSON document, without the names of fields."""
    if isinstance(value, str | int | float):
        yield str(value)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_of(inner)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_label(value: Any) -> bool:
    """Whether a value is a line of text without blanks around it."""
    is_line = isinstance(value, str) and value.splitlines() == [value] == [value.strip()]
    return is_line and not re.search("[\ud800-\udfff]", value)


@or_nothing
def labels_of(values: Any) -> list[str]:
    """A list of different labels."""
    good = isinstance(values, list) and values and all(map(is_label, values)) and len(set(values)) == len(values)
    return values if good else NOTHING


@or_nothing
def photo_of(name: Any) -> tuple[str, ...]:
    """The parts of an image name, relative to the folder of the photos."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    is_outside = ".." in parts or re.match(r"[/\\]|[A-Za-z]:", name)
    is_text = name.strip() and not re.search("[\0\ud800-\udfff]", name)
    return tuple(parts) if parts and is_text and not is_outside else NOTHING


@or_nothing
def annotations_of(document: Any) -> tuple[list[str], list[str], list[list[int]]]:
    """(labels, names, rows of 0 and 1) in the layout of the reference implementation."""
    labels, samples = labels_of(document["labels"]), document["samples"]
    names, given = ([sample[field] for sample in samples] for field in ("image_name", "image_labels"))
    photos = [photo_of(name) for name in names]
    good = isinstance(samples, list) and photos and NOTHING not in photos and len(set(photos)) == len(photos)
    good = good and all(isinstance(those, list) and set(those) <= set(labels) for those in given)
    rows = [[int(label in those) for label in labels] for those in given]
    return (labels, names, rows) if good else NOTHING
