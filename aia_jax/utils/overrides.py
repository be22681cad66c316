"""Sets fields of a config from the command line."""

import ast
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import nearest

_WORDS = {"true": True, "1": True, "false": False, "0": False}


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Sets fields of `config` in place.

    Args:
        config: its fields give the types of the values; a whole number is a number too, and a number may be None.
        overrides: `--config.field=value`; for a bool field also `--config.field` and `--noconfig.field`.

    Raises:
        InputError: it lists all unknown fields and all values of another type than their field.
    """
    known = flatten(config.to_dict())
    problems = []
    for override in overrides:
        flag, equals, text = override.partition("=")
        prefix, _, field = flag.partition(".")
        if field not in known:
            near = ", ".join(f"--config.{name}" for name in nearest(field, known, 3))
            problems.append(f"the config has no field {flag}" + (f"; nearest: {near}" if near else ""))
            continue
        *groups, name = field.split(".")
        group = functools.reduce(ConfigDict.__getitem__, groups, config)
        try:
            kind = group.get_type(name)
            group[name] = _parse(kind, text) if equals else _parse_switch(kind, prefix)
        except ValueError as error:
            problems.append(f"{override!r:.200}: {error}")
    if problems:
        raise InputError("\n".join(problems))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested fields into `{"model.backbone": value}`; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def _parse_switch(kind: type, prefix: str) -> bool:
    if kind is not bool:
        raise ValueError("needs a value, as --config.field=value")
    return prefix == "--config"


def _parse(kind: type, text: str) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ValueError("must be true or false")
        return _WORDS[text.lower()]
    if kind is tuple:
        return _parse_tuple(text)
    if kind not in (int, float):
        raise ValueError("cannot be set on the command line")
    if text == "None":  # check_fields refuses it where a field needs a number
        return None
    try:
        return kind(text)
    except ValueError:
        raise ValueError("must be a whole number" if kind is int else "must be a number") from None


def _parse_tuple(text: str) -> tuple[Any, ...]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("must be a tuple, such as (8, 16)") from None
    return tuple(value) if isinstance(value, tuple | list) else (value,)
