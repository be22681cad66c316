"""Weights files of others, read without executing anything in them, and written for others."""

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

import ml_dtypes  # noqa: F401, teaches NumPy bfloat16
import numpy as np

from aia_jax.utils.errors import InputError

_WRAPPERS = ("state_dict", "model")
_DEEPEST = 4  # wrappers within wrappers
_ENCODERS = 3  # of SGRAF, each with a state dict of its own
_FORBIDDEN = re.compile(r"GLOBAL (\S+)")


def read_torch_file(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """What a `.safetensors` file holds, or one that `torch.save` wrote, unpickled with `weights_only=True`.

    A dict inside `{"state_dict": ...}` or `{"model": ...}` is unwrapped, and `module.` taken off where every name
    starts with it. Three state dicts become one, of names that begin with `0.`, `1.` and `2.`.

    Returns:
        Name to array; floating ones are float32. The options that lie beside the arrays as `opt`, an
        `argparse.Namespace`; None: there are none.

    Raises:
        InputError: absent, damaged, truncated, holding anything but arrays or NaN among them, or torch is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; give a .pth, .pt, .bin or .safetensors file")
    read = _read_safetensors if _is_safetensors(path) else _read_torch
    content, options = _unwrap(read(path), path)
    state = _without_prefix(_arrays(content, path), "module.")
    broken = [name for name, value in state.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{path} holds NaN or infinity in {len(broken)} array(s), first in {broken[0]}")
    return state, options


def write_torch_file(
    path: str | Path, state: dict[str, np.ndarray], *, beside: Mapping[str, Any] | None = None
) -> None:
    """Writes a `.safetensors` file, or else one for `torch.load`; the whole file or none.

    Args:
        path: to write.
        state: name to array.
        beside: for `torch.load`, the other entries of SGRAF's checkpoints, options as a dict `opt`; the arrays, of
            names that begin with `0.`, `1.` and `2.`, are then a list of state dicts, `model`.

    Raises:
        InputError: torch or safetensors is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".safetensors":
            arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
            _needed("safetensors.numpy").save_file(arrays, temporary)
        else:
            torch = _needed("torch")
            content: dict[str, Any] = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
            if beside is not None:
                content = {**beside, "model": _split(content), "opt": argparse.Namespace(**beside["opt"])}
            torch.save(content, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"  # behind the length of its JSON


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    safetensors = _needed("safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: _as_array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged, truncated or no safetensors file: {error}") from None


def _read_torch(path: Path) -> Any:
    torch = _needed("torch")
    _check_unpacked(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of pickle protocols and old storages
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _FORBIDDEN.search(str(error))
        wanted = f"it asks to load {found[1]}, which is no array" if found else "its pickle is not one of torch.save"
        raise InputError(
            f"{path} is refused: {wanted}; nothing in it was executed. Ask for a file with the state dict alone"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # torch's readers raise almost anything for bytes that are no valid archive.
        raise InputError(f"{path} is damaged, truncated or no file of torch.save: {_first_line(error)}") from None


def _check_unpacked(path: Path) -> None:
    """Refuses archives that unpack to more than they hold; `torch.save` compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(part.file_size for part in archive.infolist())
    except Exception:  # it is torch's to tell what is wrong with a file that is no archive, or a damaged one
        return
    if num_bytes > path.stat().st_size:
        raise InputError(
            f"{path} is refused: a file of {path.stat().st_size:,} bytes that unpacks to {num_bytes:,}, perhaps a zip "
            "bomb. If it was compressed, save it anew with torch.save"
        )


def _unwrap(content: Any, path: Path) -> tuple[dict[Any, Any], dict[str, Any] | None]:
    """A dict of what should be arrays, and the options that lay beside it."""
    options = None
    for _ in range(_DEEPEST):
        wrapper = next(
            (
                name
                for name in _WRAPPERS
                if isinstance(content, dict) and (isinstance(content.get(name), dict) or _encoders(content.get(name)))
            ),
            None,
        )
        if wrapper is None:
            break
        beside = [name for name, value in content.items() if hasattr(value, "detach")]
        if beside:
            raise InputError(f"{path} holds arrays beside its {wrapper!r}: {', '.join(map(str, beside[:5]))}")
        if isinstance(content.get("opt"), argparse.Namespace):
            options = vars(content["opt"])
        content = content[wrapper]
    if encoders := _encoders(content):
        parts = [_without_prefix({str(name): value for name, value in part.items()}, "module.") for part in encoders]
        content = {f"{number}.{name}": value for number, part in enumerate(parts) for name, value in part.items()}
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no state dict but {type(content).__name__}; save model.state_dict()")
    return content, options


def _encoders(content: Any) -> list[dict[Any, Any]] | None:
    """The three state dicts that `content` is, if it is that."""
    parts = list(content.values()) if isinstance(content, dict) else content
    fits = isinstance(parts, list | tuple) and len(parts) == _ENCODERS and all(isinstance(part, dict) for part in parts)
    return list(parts) if fits else None


def _split(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{} for _ in range(_ENCODERS)]
    for name, value in state.items():
        number, _, inner = name.partition(".")
        parts[int(number)][inner] = value
    return parts


def _arrays(content: Mapping[Any, Any], path: Path) -> dict[str, np.ndarray]:
    state, others = {}, []
    for name, value in content.items():
        try:
            state[str(name)] = _as_array(value)
        except (TypeError, ValueError, RuntimeError):
            others.append(f"{name} ({type(value).__name__})")
    if others:
        raise InputError(f"{path} holds what is no array: {', '.join(others[:5])}; save model.state_dict() alone")
    return state


def _as_array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach()
        if value.untyped_storage().nbytes() < value.nelement() * value.element_size():
            raise ValueError("more elements than are stored")
        value = (value.float() if value.is_floating_point() else value).numpy()
    elif not isinstance(value, np.ndarray):
        raise TypeError(type(value).__name__)
    return value.astype(np.float32) if value.dtype.kind in "fV" else value


def _without_prefix(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    if not state or not all(name.startswith(prefix) for name in state):
        return state
    return _without_prefix({name.removeprefix(prefix): value for name, value in state.items()}, prefix)


def _needed(module: str) -> types.ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"this needs {module.split('.')[0]}: pip install 'aia_jax[convert]'") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
