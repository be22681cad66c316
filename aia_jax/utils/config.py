"""Reads configs: executes the file, applies overrides, checks the values of fields."""

import ast
import functools
import inspect
import math
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import nearest

_LARGEST = 2**31 - 1  # of a whole number
_WORDS = {"true": True, "1": True, "false": False, "0": False}


def read_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Executes a config file once and applies overrides such as `--config.batch_size=8`.

    Args:
        path: a config file, or `FILE:ARGUMENT` if its `get_config` takes an argument. The file may import from the
            current directory and from the parent of its own folder.
        overrides: see `apply_overrides`.

    Returns:
        The locked config.

    Raises:
        InputError: a missing file, an unknown argument or field, a value of another type or one that is not allowed.
    """
    config = _get_config(path)
    apply_overrides(config, overrides)
    check_fields(config)
    return config.lock()


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


class Field(NamedTuple):
    """The values that a config field may have.

    Attributes:
        least: the smallest number; None: no bound.
        most: the largest number; None: no bound.
        above: the number must be greater than this one; None: no bound.
        words: the strings that are known; (): any string.
        resumable: a run may be continued with another value, because the value does not change what is computed.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    words: tuple[str, ...] = ()
    resumable: bool = False

    @property
    def range(self) -> str:
        """The range of a number, for example "at least 1"; "" if there is none."""
        if self.above is not None:
            return f"above {self.above:g}"
        if self.most is not None:
            return f"{self.least:g}..{self.most:g}"
        return "" if self.least is None else f"at least {self.least:g}"


# In the order of docs/configs.md. A field that is not listed here may have any value and is not resumable. Names of
# models, losses, data sets and optimisers are checked where they are used.
FIELDS = {
    "seed": Field(least=0),
    "epochs": Field(least=1),
    "batch_size": Field(least=1),
    "accumulate_steps": Field(least=1),
    "ema_decay": Field(least=0, most=1),
    "log_every": Field(least=1, resumable=True),
    "on_nonfinite": Field(words=("stop", "skip"), resumable=True),
    "max_skipped_steps": Field(least=1, resumable=True),
    "published": Field(resumable=True),
    "init_labels": Field(resumable=True),  # read only at the start
    "mesh.fsdp": Field(least=1, resumable=True),
    "checkpoint.keep": Field(least=1, resumable=True),
    "data.root": Field(resumable=True),
    "data.image_size": Field(least=1),
    "data.cache_dir": Field(resumable=True),
    "data.placement": Field(words=("host", "device"), resumable=True),
    "data.num_workers": Field(least=0, resumable=True),
    "data.flips": Field(words=("none", "horizontal", "both")),
    "data.validation_fraction": Field(least=0, most=1),
    "data.feature_dtype": Field(words=("float16", "float32")),
    "data.photos": Field(resumable=True),
    "data.lengths": Field(least=1),
    "data.keywords": Field(words=("annotator", "labels")),
    "data.keyword_threshold": Field(least=0, most=1),
    "data.max_keywords": Field(least=1),
    "data.keywords_left_out": Field(least=0, most=1),
    "data.keywords_added": Field(least=0, most=1),
    "data.query_words": Field(least=1),
    "data.held_out": Field(least=0, most=1),
    "data.negatives": Field(least=0),
    "data.split_seed": Field(least=0),
    "data.num_train": Field(least=1),
    "data.num_test": Field(least=1),
    "data.seed": Field(least=0),
    "model.gate_kernels": Field(resumable=True),  # in runs of earlier versions
    "model.remat": Field(resumable=True),
    "model.hidden_size": Field(least=1),
    "model.num_heads": Field(least=1),
    "model.num_layers": Field(least=1),
    "model.feedforward_size": Field(least=1),
    "model.dropout": Field(least=0, most=1),
    "model.embed_size": Field(least=1),
    "model.word_size": Field(least=1),
    "model.similarity_size": Field(least=1),
    "model.num_regions": Field(least=1),
    "model.num_features": Field(least=1),
    "model.block": Field(least=1, resumable=True),
    "model.recompute": Field(resumable=True),
    "model.kernel_size": Field(least=1),
    "loss.margin": Field(above=0),
    "optimizer.max_learning_rate": Field(least=0),
    "optimizer.pct_start": Field(least=0, most=1),
    "optimizer.initial_div": Field(above=0),
    "optimizer.final_div": Field(above=0),
    "optimizer.beta1_base": Field(least=0, most=1),
    "optimizer.beta1_max": Field(least=0, most=1),
    "optimizer.beta1": Field(least=0, most=1),
    "optimizer.beta2": Field(least=0, most=1),
    "optimizer.eps": Field(above=0),
    "optimizer.decay_epochs": Field(least=1),
    "optimizer.decay_factor": Field(above=0),
    "optimizer.weight_decay": Field(least=0),
    "optimizer.clip_norm": Field(least=0),
    "eval.batch_size": Field(least=1, resumable=True),
    "eval.block": Field(least=1, resumable=True),
    "eval.threshold": Field(least=0, most=1, resumable=True),
    "eval.split": Field(words=("validation", "test")),
}


def check_fields(config: ConfigDict) -> None:
    """Checks each value against the range or the words of its field.

    Raises:
        InputError: it lists all values that are not allowed.
    """
    problems = [
        f"config.{name}={value!r:.80} {problem}"
        for name, value in flatten(config.to_dict()).items()
        if (problem := _problem(FIELDS.get(name, Field()), value))
    ]
    if problems:
        raise InputError("\n".join(problems))


def _problem(field: Field, value: Any) -> str:
    if isinstance(value, str):
        return f"is unknown; known: {', '.join(field.words)}" if field.words and value not in field.words else ""
    if isinstance(value, tuple | list):
        rising = all(type(number) is int for number in value) and [0, *value] == sorted({0, *value})
        return "" if rising and value else "must be whole numbers above 0 in increasing order"
    required = field.range and f"must {'be' if field.most is None else 'lie in'} {field.range}"
    if value is None:
        return required
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    if not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and value > _LARGEST:
        return f"must be at most {_LARGEST}"
    return "" if _contains(field, value) else required


def _contains(field: Field, value: float) -> bool:
    return (
        (field.least is None or value >= field.least)
        and (field.most is None or value <= field.most)
        and (field.above is None or value > field.above)
    )
