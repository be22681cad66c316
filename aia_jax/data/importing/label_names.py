"""Finds the names of labels in values of JSON, as annotation tools write them."""

from typing import Any

_NAMES = ("choices", "label", "name", "displayName")  # and all that end with "labels"
WEIGHTS = ("confidence", "score", "probability")


def label_names(value: Any, classes: list | tuple = (), depth: int = 4) -> tuple[str, ...]:
    """Returns the labels in a text, in an object, or in a list of these. Numbers are indices of `classes`."""
    if isinstance(value, list | tuple | set) and depth:
        return tuple(dict.fromkeys(name for item in value for name in label_names(item, classes, depth - 1)))
    if isinstance(value, dict) and value and depth and all(isinstance(name, str) for name in value):
        if weights := [field for field in WEIGHTS if value.get(field) not in (None, 1)]:
            raise ValueError(f"a label has a {weights[0]}; predictions are no labels: keep those that hold, without it")
        if all(mark in (0, 1) for mark in value.values()):
            return tuple(name for name, mark in value.items() if mark)
        named = (value[field] for field in value if field in _NAMES or field.endswith("labels"))
        given = [names for names in named if names not in (None, "", [])]
        if len(given) == 1:
            return label_names(given[0], classes, depth - 1)
    if type(value) is int and 0 <= value < len(classes):
        value = classes[value]
    if isinstance(value, str):
        return (value,) if value else ()
    if type(value) in (int, float):
        raise ValueError(f"the label {value} is a number; the file does not name it: write the names of labels")
    raise ValueError(f"{value!r:.60} is neither a label nor a list of labels")
