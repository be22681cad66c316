"""Values that PyTorch computes, and recordings of them for machines without PyTorch.

Where torch and timm are installed, a test compares with values that they compute at once, and the recordings are
checked. Elsewhere it compares with the recordings. `python tests/record_references.py` makes them.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.training.model_arrays import flat_arrays, merge_model, replace_arrays, split_model
from aia_jax.weights.name_map import find_place, system_of, to_torch
from aia_jax.weights.torch_state import full_name

FOLDER = Path(__file__).parents[1] / "references"
RECORD = "AIA_JAX_RECORD_REFERENCES"  # an environment variable: write recordings instead of checking them
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "timm"))
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed: pip install -e '.[parity]'")
_MOST_ELEMENTS = 100  # of an array in a recording
_ADVICE = "record it with python tests/record_references.py"


class Sample(NamedTuple):
    """Some elements of a recorded array.

    Attributes:
        values: the elements at `_positions(size)` of the flat array, then its largest magnitude.
        shape: shape of the whole array.
    """

    values: np.ndarray
    shape: tuple[int, ...]


def reference(name: str, compute: Callable[[], dict[str, Any]], package: str = "timm") -> dict[str, Any]:
    """Returns the arrays that `compute` returns, or `Sample`s of them where torch or `package` is not installed.

    Args:
        name: FILE/KEY. The recordings are in `tests/references/FILE.npz`.
        compute: function that computes with torch or timm and returns `{name: array}`.
        package: the package that `compute` needs beside torch.
    """
    if not (HAS_TORCH and importlib.util.find_spec(package)):
        return _recorded(name)
    values = {key: np.asarray(value) for key, value in compute().items()}
    if os.environ.get(RECORD):
        _record(name, values)
    recorded = _recorded(name)
    assert recorded.keys() == values.keys(), f"{name}: {_ADVICE}"
    scale = max(map(largest, recorded.values()))
    for key, value in values.items():
        assert largest_error(value, recorded[key]) <= 1e-4 * scale, f"{name}/{key}: {_ADVICE}"
    return values


def same_elements(ours: Any, theirs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns both arrays in float64, or of both the elements that `theirs` holds if it is a `Sample`."""
    ours = np.asarray(ours, np.float64)
    shape = theirs.shape if isinstance(theirs, Sample) else np.shape(theirs)
    assert ours.shape == shape, (ours.shape, shape)
    if isinstance(theirs, Sample):
        assert np.isfinite(ours).all()
        return ours.ravel()[_positions(ours.size)], theirs.values[:-1].astype(np.float64)
    return ours, np.asarray(theirs, np.float64)


def relative_error(ours: Any, theirs: Any) -> float:
    """Returns the largest difference, divided by the largest magnitude of `theirs`, an array or a `Sample`."""
    return largest_error(ours, theirs) / largest(theirs)


def largest_error(ours: Any, theirs: Any) -> float:
    """Returns the largest difference to `theirs`, an array or a `Sample`."""
    found, expected = same_elements(ours, theirs)
    return np.abs(found - expected).max()


def largest(theirs: Any) -> float:
    """Returns the largest magnitude of an array or a `Sample`."""
    return float(theirs.values[-1] if isinstance(theirs, Sample) else np.abs(theirs).max())


def random_state(build: Callable[[], nnx.Module], family: str, seed: int) -> dict[str, np.ndarray]:
    """Returns a PyTorch state dict with random values for the model that `build` builds.

    Weights have such a size that activations neither vanish nor explode.
    """
    shapes = shapes_of(build)
    zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    state = to_torch(zeros, system=system_of(zeros), family=family)
    rng = np.random.default_rng(seed)
    return {name: _random(name, value, rng) for name, value in state.items()}


def model_of(build: Callable[[], nnx.Module], state: Mapping[str, np.ndarray], family: str) -> nnx.Module:
    """Returns the model that `build` builds, with the arrays of a PyTorch state dict."""
    graphdef, weights = split_model(nnx.eval_shape(build))
    arrays = {path: jnp.asarray(value) for path, value in our_arrays(build, state, family).items()}
    return merge_model(graphdef, replace_arrays(weights, arrays))


def our_arrays(build: Callable[[], nnx.Module], state: Mapping[str, np.ndarray], family: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a PyTorch state dict, or its gradients, under our paths."""
    shapes, found = shapes_of(build), {}
    system = system_of(shapes)
    for path, shape in shapes.items():
        (area, name), transform, part = find_place(path, system=system, family=family)
        value = np.asarray(state[full_name(system, family, area, name)])
        found[path] = transform.to_jax(value if part is None else np.split(value, 3)[part])
        assert found[path].shape == shape, (path, found[path].shape, shape)
    return found


def shapes_of(build: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the arrays of the model that `build` builds, by path."""
    return {path: leaf.shape for path, leaf in flat_arrays(split_model(nnx.eval_shape(build))[1]).items()}


def _random(name: str, zeros: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shape, leaf = zeros.shape, name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return zeros
    if leaf == "running_var":
        values = rng.uniform(0.6, 1.6, shape)
    elif leaf == "running_mean":
        values = rng.normal(0, 0.3, shape)
    elif leaf in ("bias", "b", "in_proj_bias"):
        values = rng.normal(0, 0.2, shape)
    elif len(shape) == 1:  # the scale of a norm
        values = rng.uniform(0.4, 1.0, shape)
    elif leaf == "in_proj_weight":
        values = rng.normal(0, shape[1] ** -0.5, shape)
    elif name.endswith("query_emb.weight"):
        values = rng.normal(size=shape)
    else:
        values = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
    return values.astype(np.float32)


@functools.cache
def _positions(size: int) -> np.ndarray:
    if size <= _MOST_ELEMENTS:
        return np.arange(size)
    return np.random.default_rng(size).choice(size, _MOST_ELEMENTS, replace=False)


def _record(name: str, values: dict[str, np.ndarray]) -> None:
    file, _, key = name.partition("/")
    path = FOLDER / f"{file}.npz"
    entries = {entry: value for entry, value in _load(path).items() if not entry.startswith(f"{key}|")}
    for inner, value in values.items():
        sample = np.append(value.ravel()[_positions(value.size)], np.abs(value).max())
        entries[f"{key}|{inner}|{','.join(map(str, value.shape))}"] = sample
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(path, **dict(sorted(entries.items())))
    _load.cache_clear()


def _recorded(name: str) -> dict[str, Sample]:
    file, _, key = name.partition("/")
    found = {}
    for entry, values in _load(FOLDER / f"{file}.npz").items():
        start, inner, shape = entry.split("|")
        if start == key:
            found[inner] = Sample(values, tuple(map(int, filter(None, shape.split(",")))))
    assert found, f"{name}: {_ADVICE}"
    return found


@functools.cache
def _load(path: Path) -> dict[str, np.ndarray]:
    return dict(np.load(path)) if path.exists() else {}
