"""Finds the weights of a model in the content of a checkpoint: in wrappers, under prefixes and beside other arrays.

A place in a checkpoint is written as the keys of the dicts and the prefix of the array names, joined by dots. For
example, `state_dict.model` is the place of the array `model.head.w` in the dict `state_dict`.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import printable
from aia_jax.weights.torch_pickle import Opaque
from aia_jax.weights.torch_state import model_prefixes

# Parts of names that wrappers of modules add: data parallel, torch.compile, FSDP, activation checkpoints, Lightning.
_WRAPPERS = re.compile(
    r"(?<![^.])(module|_module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_TRAINING = re.compile(r"loss|criteri|metric|optim|sched|exp_avg", re.IGNORECASE)
# Arrays beside a model: parts of an average that have no names of a model, and its counters.
_AVERAGES = re.compile(r"n_averaged|num_updates|steps?|initted|decay|ema_\w+|model_ema")
_AVERAGE = re.compile(r"(^|[._])(ema|avg|average|averaged|swa)([._]|$)", re.IGNORECASE)
_MMENGINE_AVERAGE = re.compile(r"state_dict\.")  # it saves the raw weights as `ema_state_dict`
_MAX_DEPTH, _MOST_VALUES, _MOST_ARRAYS, _LONGEST_NAME = 7, 2_000_000, 100_000, 1000
_LISTED = 5


def find_weights(content: Any, key: str, where: str) -> tuple[dict[str, Any], dict[str, Any] | None, list[str]]:
    """Finds the arrays of the one model in a checkpoint.

    Of two sets of weights, takes the moving average, as timm does. SGRAF's three state dicts become one. `key` is the
    place of the weights, or its beginning; "" is any place.

    Returns:
        The arrays by their names without wrappers and prefixes; the options `opt` of the file or None; and sentences
        that say which of several sets was taken, and which arrays are not used.

    Raises:
        InputError: the file has no arrays, or several sets of weights of which none is the average.
    """
    arrays, options, opaque = _collect(content, where)
    places = [place for place in model_prefixes(arrays) if not _TRAINING.search(place)]
    if not places:
        if problem := _refusal(content, arrays, opaque):
            raise InputError(f"{where} {problem}")
        return arrays, options, []
    is_mmengine = isinstance(content, dict) and {"message_hub", "ema_state_dict"} <= content.keys()
    average = _MMENGINE_AVERAGE.match if is_mmengine else _AVERAGE.search
    place, notes = _choose(places, key, average, where)
    inner = tuple(other for other in places if other != place and other.startswith(place))
    used = [
        name
        for name in arrays
        if name.startswith(place)
        and not name.startswith(inner)
        and not _TRAINING.search(first := name.removeprefix(place).partition(".")[0])
        and not _AVERAGES.fullmatch(first)
    ]
    rest, elsewhere = arrays.keys() - set(used), tuple(other for other in places if other != place)
    if left := [printable(name) for name in arrays if name in rest and not name.startswith(elsewhere)]:
        more = " ..." * (len(left) > _LISTED)
        notes.append(f"{where}: arrays outside of the model are not used: {', '.join(left[:_LISTED])}{more}")
    state = {_WRAPPERS.sub("", name.removeprefix(place)): arrays[name] for name in used}
    if len(state) < len(used):
        raise InputError(f"{where}: some arrays have the same name after prefixes are removed; save model.state_dict()")
    return state, options, notes


def _collect(content: Any, where: str) -> tuple[dict[str, Any], dict[str, Any] | None, list[Opaque]]:
    """Returns the arrays by their names without wrappers, the options `opt`, and the objects that are not read."""
    arrays, options, opaque = {}, None, []
    for number, (name, value) in enumerate(_values(content)):
        if number > _MOST_VALUES or len(arrays) > _MOST_ARRAYS:
            raise InputError(f"{where} is refused: it holds more than {min(number, _MOST_VALUES):,} values")
        if isinstance(value, Opaque):
            opaque.append(value)
        elif isinstance(value, argparse.Namespace) and name.rpartition(".")[2] == "opt":
            options = options or vars(value)
        elif isinstance(value, np.ndarray):
            if name in arrays:
                raise InputError(f"{where}: two arrays have the name {printable(name)}")
            arrays[name] = value
    short = {name: _WRAPPERS.sub("", name) for name in arrays}
    counts = Counter(short.values())  # the same weights with and without `module.` are two sets
    names = {name: short[name] if counts[short[name]] == 1 else name for name in arrays}
    return {names[name]: value for name, value in arrays.items()}, options, opaque


def _values(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields the name and the value of everything in dicts, lists and tuples."""
    if not isinstance(content, dict | list | tuple):
        yield name, content
        return
    is_named = isinstance(content, dict) and not _is_sgraf(content)
    items = content.items() if is_named else enumerate(content.values() if isinstance(content, dict) else content)
    for key, value in items:
        inner = f"{name}.{key}" if name else str(key)
        if depth < _MAX_DEPTH and isinstance(key, str | int) and len(inner) <= _LONGEST_NAME:
            yield from _values(value, inner, depth + 1)


def _is_sgraf(content: Mapping[Any, Any]) -> bool:
    """Returns whether a dict has the state dicts of SGRAF's three encoders, under any names."""
    parts = list(content.values())
    are_dicts = len(parts) == 3 and all(isinstance(part, dict) for part in parts)
    return are_dicts and any(str(name).endswith("sim_eval_w.weight") for name in parts[2])


def _refusal(content: Any, arrays: Mapping[str, Any], opaque: list[Opaque]) -> str:
    """Returns why a file has no state dict, or "" if it has arrays."""
    if modules := [value.name for value in opaque if value.is_module]:
        name = printable(modules[0])
        return f"holds a whole pickled model ({name}), which only its own code can load; save model.state_dict() there"
    kind = printable(opaque[0].name) if opaque else type(content).__name__
    found = "with arrays" if isinstance(content, dict) and not opaque else f"but {kind}"
    return "" if arrays else f"holds no state dict {found}; save model.state_dict()"


def _choose(places: list[str], key: str, average: Callable[[str], Any], where: str) -> tuple[str, list[str]]:
    """Returns one of `places`, and a sentence that lists the others. `average` recognises the place of an average."""
    shown = {place: printable(place[:-1] or ".") for place in places}
    fitting = [place for place in places if key in ("", shown[place])] or [p for p in places if p.startswith(f"{key}.")]
    sets = f"{len(places)} sets of weights: {', '.join(shown.values())}"
    if not fitting:
        raise InputError(f"{where} holds no weights in config.weights_key={key!r}; it holds {sets}")
    averages = [place for place in fitting if average(place)]
    if len(fitting) > 1 and len(averages) != 1:
        flag = f"--config.weights_key={shown[fitting[0]]}"
        raise InputError(f"{where} holds {sets}; choose one, for example with {flag}")
    if len(places) == 1 or key:
        return fitting[0] if len(fitting) == 1 else averages[0], []
    flag = f"--config.weights_key={next(text for place, text in shown.items() if place != averages[0])}"
    taken = f"The moving average {shown[averages[0]]} is taken; {flag} takes the other weights"
    return averages[0], [f"{where} holds {sets}. {taken}"]
