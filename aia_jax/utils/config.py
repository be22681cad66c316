"""Reads configs: executes the file, applies overrides, checks the ranges of numbers."""

import inspect
import math
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import nearest

_LARGEST = 2**31 - 1
_FROM_ZERO = ("max_skipped_steps", "negatives", "num_workers", "seed", "split_seed")  # other whole numbers: from 1
_FRACTIONS = (
    *("beta1", "beta1_base", "beta1_max", "beta2", "dropout", "ema_decay", "eval.threshold", "held_out", "pct_start"),
    *("keyword_threshold", "keywords_added", "keywords_left_out", "validation_fraction"),
)
_ABOVE_ZERO = ("decay_factor", "eps", "final_div", "initial_div", "margin")


def check_numbers(config: ConfigDict) -> None:
    """Raises InputError, naming all of them, if numbers of a config make no sense whatever the others are."""
    problems = [
        f"config.{field}={value!r:.80} {problem}"
        for field, value in flatten(config.to_dict()).items()
        if (problem := _problem(field, value))
    ]
    if problems:
        raise InputError("\n".join(problems))


def _problem(field: str, value: Any) -> str:
    if isinstance(value, tuple | list):  # data.lengths alone
        rising = all(type(number) is int for number in value) and [0, *value] == sorted({0, *value})
        return "" if rising and value else "must be whole numbers above 0 that rise"
    if isinstance(value, int) and not isinstance(value, bool):
        least = 0 if _is_one_of(field, _FROM_ZERO) else 1
        return "" if least <= value <= _LARGEST else f"must lie in {least}..{_LARGEST}"
    if not isinstance(value, float):
        return ""
    if not math.isfinite(value):
        return "must be a finite number"
    if _is_one_of(field, _FRACTIONS):
        return "" if 0 <= value <= 1 else "must lie in 0..1"
    if _is_one_of(field, _ABOVE_ZERO):
        return "" if value > 0 else "must be above 0"
    return "" if value >= 0 or field.startswith("loss.") else "must be at least 0"


def _is_one_of(field: str, names: tuple[str, ...]) -> bool:
    return f".{field}".endswith(tuple(f".{name}" for name in names))


def read_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Executes a config file once and applies overrides such as `--config.batch_size=8`.

    Args:
        path: a config file, or `FILE:ARGUMENT` if its `get_config` takes an argument. The file may import from the
            current directory and from the parent of its own folder.
        overrides: `--config.field=value`; each value must have the type of its field.

    Returns:
        The locked config.

    Raises:
        InputError: a missing file, an unknown argument or field, a value of another type, a number out of range.
    """
    config = _get_config(path)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=list(overrides))
        unexpected = values(["aia", *overrides])[1:]
    except flags.UnrecognizedFlagError as error:
        raise InputError(f"unknown flag --{error.flagname}, see --help") from error
    except (AttributeError, KeyError) as error:
        raise InputError(_unknown_fields(config, overrides) or str(error)) from error
    except flags.Error as error:
        raise InputError(str(error)) from error
    except (SyntaxError, TypeError, ValueError) as error:  # names and values that Python cannot parse
        raise InputError(f"{' '.join(map(repr, overrides))}: {error}") from error
    if unexpected:
        raise InputError(f"unexpected argument {unexpected[0]!r}; every argument is a flag, see --help")
    check_numbers(config)
    return config


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested fields into `{"model.backbone": value}`; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def _get_config(path: str) -> ConfigDict:
    file, *argument = path.split(":", 1)
    if not Path(file).is_file():
        raise InputError(f"--config {file}: no such file")
    for folder in (Path.cwd(), Path(file).absolute().parent.parent):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    try:
        get_config = runpy.run_path(file).get("get_config")
        if not callable(get_config):
            raise InputError(f"--config {file}: defines no function get_config")
        if argument and not inspect.signature(get_config).parameters:
            raise InputError(f"{file} takes no argument, {argument[0]!r} was given")
        config = get_config(*argument)
    except (AttributeError, ImportError, KeyError, NameError, SyntaxError, TypeError) as error:
        raise InputError(f"--config {file}: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise InputError(str(error)) from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config {file}: get_config returns {type(config).__name__}, not a ConfigDict")
    return config


def _unknown_fields(config: ConfigDict, overrides: Sequence[str]) -> str:
    known = [f"--config.{field}" for field in flatten(config.to_dict())]
    lines = []
    for name in (argument.split("=")[0] for argument in overrides if argument.startswith("--config.")):
        if name not in known:
            near = ", ".join(nearest(name, known, 3))
            lines.append(f"the config has no field {name}" + (f"; nearest: {near}" if near else ""))
    return "\n".join(lines)
