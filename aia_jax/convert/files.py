"""Weights files of others, read without executing anything in them, and written for others."""

import importlib
import pickle
import re
import types
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401, teaches NumPy bfloat16
import numpy as np

from aia_jax.errors import InputError

_WRAPPERS = ("state_dict", "model")
_DEEPEST = 4  # wrappers within wrappers
_FORBIDDEN = re.compile(r"GLOBAL (\S+)")


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors` file or of one that `torch.save` wrote, unpickled with `weights_only=True`.

    A dict inside `{"state_dict": ...}` or `{"model": ...}` is unwrapped, and `module.` taken off where every name
    starts with it.

    Returns:
        Name to array; floating ones are float32.

    Raises:
        InputError: absent, damaged, truncated, holding anything but arrays or NaN among them, or torch is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; give a .pth, .pt, .bin or .safetensors file")
    read = _read_safetensors if _is_safetensors(path) else _read_torch
    state = _without_prefix(_unwrap(read(path), path), "module.")
    broken = [name for name, value in state.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{path} holds NaN or infinity in {len(broken)} array(s), first in {broken[0]}")
    return state


def write_state_dict(path: str | Path, state: dict[str, np.ndarray]) -> None:
    """Writes a `.safetensors` file, or else one for `torch.load`; the whole file or none.

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
            torch.save({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, temporary)
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
    try:
        with warnings.catch_warnings():
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


def _unwrap(content: Any, path: Path) -> dict[str, np.ndarray]:
    for _ in range(_DEEPEST):
        wrapper = next(
            (name for name in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(name), dict)), None
        )
        if wrapper is None:
            break
        beside = [name for name, value in content.items() if hasattr(value, "detach")]
        if beside:
            raise InputError(f"{path} holds arrays beside its {wrapper!r}: {', '.join(map(str, beside[:5]))}")
        content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no state dict but {type(content).__name__}; save model.state_dict()")
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


def _without_prefix(state: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    if not all(name.startswith(prefix) for name in state):
        return state
    return _without_prefix({name.removeprefix(prefix): value for name, value in state.items()}, prefix)


def _needed(module: str) -> types.ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"this needs {module.split('.')[0]}: pip install 'aia_jax[convert]'") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
