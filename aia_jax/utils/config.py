"""Reads configs: executes the config file, applies overrides, and checks the values of the fields."""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aia_jax.utils.config_fields import check_fields, expand_paths, flatten
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import nearest
from aia_jax.utils.paths import local_path

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CONFIGS = Path(__file__).parents[1] / "configs"
_WORDS = {"true": True, "1": True, "false": False, "0": False}
_EXPECTED = {
    bool: "must be true or false",
    int: "must be a whole number",
    float: "must be a number",
    tuple: "must be a tuple, such as (8, 16)",
}


def read_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Executes a config file once and applies overrides such as `--config.batch_size=8`.

    Args:
        path: a config file or the name of a packaged config. `FILE:ARGUMENT` if its `get_config` takes an argument. The
            file may import from the current directory and from the parent of its own folder.
        overrides: see `apply_overrides`.

    Returns:
        The locked config.

    Raises:
        InputError: the file is missing, an argument or field is unknown, or a value has another type or is not allowed.
    """
    config = _get_config(path)
    apply_overrides(config, overrides)
    check_fields(config)
    expand_paths(config)
    return config.lock()


def packaged_configs() -> dict[str, str]:
    """Returns the names of the packaged configs, and the first line of each."""
    files = sorted(path for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "base"))
    return {path.stem: path.read_text(encoding="utf-8").split('"""')[1].splitlines()[0] for path in files}


def _find_file(name: str, given: str) -> str:
    if name.endswith(".json"):
        raise InputError(f"--config {given} must be a config file (.py) or a packaged config; a run goes to --workdir")
    if Path(name).is_file():
        return name
    packaged = packaged_configs()
    if name in packaged:
        return str(CONFIGS / f"{name}.py")
    near = nearest(Path(name).stem, packaged)
    hint = f", nearest: {near[0]}" if near else ""
    raise InputError(f"--config {given}: no such file, and no packaged config{hint}; `aia configs` lists them")


def _get_config(path: str) -> ConfigDict:
    from ml_collections import ConfigDict

    name, *argument = path.split(":", 1)
    if argument and argument[0].startswith("//"):
        local_path(path)  # refuses a URL
    name = str(local_path(name))
    file = _find_file(name, path)
    for folder in (Path.cwd(), Path(file).absolute().parent.parent):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    try:
        get_config = runpy.run_path(file).get("get_config")
        if not callable(get_config):
            raise InputError(f"--config {name}: defines no function get_config")
        if argument and not inspect.signature(get_config).parameters:
            raise InputError(f"--config {name} takes no argument, {argument[0]!r} was given")
        config = get_config(*argument)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
    except Exception as error:  # the file may do anything
        raise InputError(f"--config {name}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config {name}: get_config returns {type(config).__name__}, not a ConfigDict")
    if "task" not in config:
        raise InputError(f"--config {name}: the config has no field task; see {CONFIGS / 'base.py'}")
    return config


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Sets fields of `config` in place.

    Args:
        config: the config to change. A field of type float also accepts whole numbers, and number fields accept None.
        overrides: `--config.field=value`; for a bool field also `--config.field` and `--noconfig.field`.

    Raises:
        InputError: fields are unknown, or values have a type that their field does not accept. Lists all problems.
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
        group = functools.reduce(operator.getitem, groups, config)
        try:
            kind = group.get_type(name)
            if equals and prefix == "--noconfig":
                raise ValueError("takes no value")
            if not equals and kind is not bool:
                raise ValueError("needs a value, as --config.field=value")
            group[name] = _parse(kind, text) if equals else prefix == "--config"
        except ValueError as error:
            problems.append(f"{override!r:.200}: {error}")
    if problems:
        raise InputError("\n".join(problems))


def _parse(kind: type, text: str) -> Any:
    if kind is str:
        return text
    if kind not in _EXPECTED:
        raise ValueError("cannot be set on the command line")
    if text == "None" and kind in (int, float):  # check_fields reports None if the field needs a number
        return None
    try:
        if kind is bool:
            return _WORDS[text.lower()]
        if kind is tuple:
            value = ast.literal_eval(text)
            return tuple(value) if isinstance(value, tuple | list) else (value,)
        return kind(text)
    except (ValueError, KeyError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(_EXPECTED[kind]) from None
