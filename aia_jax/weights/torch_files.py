"""Reads and writes PyTorch and safetensors files. Reading a file never executes code from it."""

import argparse
import importlib
import pickle
import re
import types
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401, registers bfloat16 with NumPy
import numpy as np

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import atomic_path

_WRAPPERS = ("state_dict", "model")
_MAX_DEPTH = 4  # levels of nested wrappers
_NUM_ENCODERS = 3  # encoders of SGRAF; each encoder has its own state dict
_FORBIDDEN = re.compile(r"GLOBAL (\S+)")


def read_torch_file(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Reads a `.safetensors` file, or a file of `torch.save` with `weights_only=True`.

    From `{"state_dict": ...}` or `{"model": ...}`, reads the inner dict. Removes the prefix `module.` if all names have
    it. Joins the three state dicts of SGRAF into one. The joined names begin with `0.`, `1.` and `2.`.

    Returns:
        The arrays, `{name: array}`, with all floating types converted to float32. Then the file's options `opt`,
        converted from an `argparse.Namespace` to a dict, or None if the file has no options.

    Raises:
        InputError: the file is missing, damaged or truncated. Or it contains NaN, infinity or objects other than
            arrays. Or torch is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; give a .pth, .pt, .bin or .safetensors file")
    read = _read_safetensors if _is_safetensors(path) else _read_torch
    content, options = _unwrap(read(path), path)
    state = _without_module_prefix(_to_arrays(content, path))
    broken = [name for name, value in state.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{path} holds NaN or infinity in {len(broken)} array(s), first in {broken[0]}")
    return state, options


def write_torch_file(
    path: str | Path, state: dict[str, np.ndarray], *, beside: Mapping[str, Any] | None = None
) -> None:
    """Writes a `.safetensors` file, or a file for `torch.load`. The write is atomic.

    Args:
        path: the file.
        state: `{name: array}`.
        beside: only for SGRAF: all entries of the checkpoint except the arrays. The entry `opt` is a dict of options.
            The arrays become the entry `model`, a list of three state dicts. Names must begin with `0.`, `1.` and `2.`.

    Raises InputError if torch or safetensors is not installed.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
            _import("safetensors.numpy").save_file(arrays, temporary)
        else:
            torch = _import("torch")
            content: dict[str, Any] = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
            if beside is not None:
                content = {**beside, "model": _split_encoders(content), "opt": argparse.Namespace(**beside["opt"])}
            torch.save(content, temporary)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"  # 8 bytes of length, then JSON


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    safetensors = _import("safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: _to_array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118, not a dict
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged, truncated or not a safetensors file: {error}") from None


def _read_torch(path: Path) -> Any:
    torch = _import("torch")
    _check_unpacked_size(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # hides warnings about pickle protocols and old storages
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _FORBIDDEN.search(str(error))
        wanted = f"it asks to load {found[1]}, which is not an array" if found else "torch.save did not write it"
        raise InputError(
            f"{path} is refused: {wanted}; nothing in it was executed. Ask for a file with only the state dict"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # torch raises errors of almost any type for invalid archives
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is damaged, truncated or not a file of torch.save: {reason}") from None


def _check_unpacked_size(path: Path) -> None:
    """Raises InputError if an archive unpacks to more bytes than the file has: `torch.save` does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(part.file_size for part in archive.infolist())
    except Exception:  # `torch.load` reports a file that is damaged or is not an archive
        return
    if num_bytes > path.stat().st_size:
        raise InputError(
            f"{path} is refused: a file of {path.stat().st_size:,} bytes that unpacks to {num_bytes:,}, perhaps a zip "
            "bomb. If it was compressed, save it again with torch.save"
        )


def _unwrap(content: Any, path: Path) -> tuple[dict[Any, Any], dict[str, Any] | None]:
    """Returns the innermost dict, which should contain only arrays, and the options from an outer dict."""
    options = None
    for _ in range(_MAX_DEPTH):
        wrapper = next((name for name in _WRAPPERS if _is_wrapped(content, name)), None)
        if wrapper is None:
            break
        beside = [name for name, value in content.items() if hasattr(value, "detach")]
        if beside:
            raise InputError(f"{path} holds arrays beside its {wrapper!r}: {', '.join(map(str, beside[:5]))}")
        if isinstance(content.get("opt"), argparse.Namespace):
            options = vars(content["opt"])
        content = content[wrapper]
    if encoders := _encoders(content):
        parts = [_without_module_prefix({str(name): value for name, value in part.items()}) for part in encoders]
        content = {f"{number}.{name}": value for number, part in enumerate(parts) for name, value in part.items()}
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no state dict but {type(content).__name__}; save model.state_dict()")
    return content, options


def _is_wrapped(content: Any, name: str) -> bool:
    return isinstance(content, dict) and (isinstance(content.get(name), dict) or bool(_encoders(content.get(name))))


def _encoders(content: Any) -> list[dict[Any, Any]] | None:
    """Returns the state dicts of SGRAF's three encoders, or None if `content` does not contain them."""
    parts = list(content.values()) if isinstance(content, dict) else content
    fits = isinstance(parts, list | tuple) and len(parts) == _NUM_ENCODERS
    return list(parts) if fits and all(isinstance(part, dict) for part in parts) else None


def _split_encoders(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{} for _ in range(_NUM_ENCODERS)]
    for name, value in state.items():
        number, _, inner = name.partition(".")
        parts[int(number)][inner] = value
    return parts


def _to_arrays(content: Mapping[Any, Any], path: Path) -> dict[str, np.ndarray]:
    state, others = {}, []
    for name, value in content.items():
        try:
            state[str(name)] = _to_array(value)
        except (TypeError, ValueError, RuntimeError):
            others.append(f"{name} ({type(value).__name__})")
    if others:
        raise InputError(f"{path} holds what is no array: {', '.join(others[:5])}; save model.state_dict() alone")
    return state


def _to_array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach()
        if value.untyped_storage().nbytes() < value.nelement() * value.element_size():
            raise ValueError("more elements than are stored")
        value = (value.float() if value.is_floating_point() else value).numpy()
    elif not isinstance(value, np.ndarray):
        raise TypeError(type(value).__name__)
    return value.astype(np.float32) if value.dtype.kind in "fV" else value


def _without_module_prefix(state: dict[str, Any]) -> dict[str, Any]:
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _import(module: str) -> types.ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"this needs {module.split('.')[0]}: pip install 'aia_jax[convert]'") from None
