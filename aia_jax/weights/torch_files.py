"""Reads and writes PyTorch and safetensors files. Reading a file never executes code from it."""

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import atomic_path
from aia_jax.utils.messages import printable
from aia_jax.weights.torch_archive import read_archive, write_archive
from aia_jax.weights.torch_pickle import ForbiddenError

_WRAPPERS = ("state_dict", "model")
_MAX_DEPTH = 4  # levels of nested wrappers
_MOST_SHARED = 4  # copies of a storage that all arrays of a file may need on average
_NUM_ENCODERS = 3  # encoders of SGRAF; each encoder has its own state dict


def read_torch_file(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Reads a `.safetensors` file or a file of `torch.save`, without torch.

    From `{"state_dict": ...}` or `{"model": ...}`, reads the inner dict. Removes the prefix `module.` if all names have
    it. Joins the three state dicts of SGRAF into one. The joined names begin with `0.`, `1.` and `2.`.

    Returns:
        The arrays, `{name: array}`, with all floating types converted to float32. Then the file's options `opt`,
        converted from an `argparse.Namespace` to a dict, or None if the file has no options.

    Raises:
        InputError: the file is missing, damaged or truncated. Or it contains NaN, infinity or objects other than
            arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; give a .pth, .pt, .bin or .safetensors file")
    read = _read_safetensors if _is_safetensors(path) else _read_torch
    content, options = _unwrap(read(path), path)
    state = _without_module_prefix(_to_arrays(content, path))
    broken = [name for name, value in state.items() if value.dtype.kind in "fc" and not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{path} holds NaN or infinity in {len(broken)} array(s), first in {printable(broken[0])}")
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
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            arrays = {name: np.asarray(value, order="C") for name, value in state.items()}
            safetensors.numpy.save_file(arrays, temporary)
        else:
            content: dict[str, Any] = dict(state)
            if beside is not None:
                content = {**beside, "model": _split_encoders(state), "opt": argparse.Namespace(**beside["opt"])}
            write_archive(temporary, content)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"  # 8 bytes of length, then JSON


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: _to_array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118, not a dict
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged, truncated or not a safetensors file: {error}") from None


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is only a pointer to a file of Git LFS; run git lfs pull")
    if start and start.isascii() and start.translate(None, b"\t\r\n").decode().isprintable():
        raise InputError(f"{path} is a text file, such as a web page or the index of other files, not of torch.save")
    _check_unpacked_size(path)
    try:
        return read_archive(path)
    except ForbiddenError as error:
        raise InputError(
            f"{path} is refused: {error}; nothing in it was executed. Ask for a file with only the state dict"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # invalid archives and pickles raise errors of almost any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is damaged, truncated or not a file of torch.save: {reason}") from None


def _check_unpacked_size(path: Path) -> None:
    """Raises InputError if an archive unpacks to more bytes than the file has: `torch.save` does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(part.file_size for part in archive.infolist())
    except Exception:  # the reader reports a file that is damaged or is not an archive
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
        _check_names(content, path)
        beside = [printable(str(name)) for name, value in content.items() if isinstance(value, np.ndarray)]
        if beside:
            raise InputError(f"{path} holds arrays beside its {wrapper!r}: {', '.join(beside[:5])}")
        if isinstance(content.get("opt"), argparse.Namespace):
            options = vars(content["opt"])
        content = content[wrapper]
    if encoders := _encoders(content):
        for part in encoders:
            _check_names(part, path)
        parts = [_without_module_prefix({str(name): value for name, value in part.items()}) for part in encoders]
        content = {f"{number}.{name}": value for number, part in enumerate(parts) for name, value in part.items()}
    if not isinstance(content, dict) or not content:
        found = f"but {type(content).__name__}" if content != {} else "with arrays"
        raise InputError(f"{path} holds no state dict {found}; save model.state_dict()")
    _check_names(content, path)
    return content, options


def _check_names(content: Mapping[Any, Any], path: Path) -> None:
    if not all(isinstance(name, str | int) for name in content):
        raise InputError(f"{path} holds a dict with keys that are not names; save model.state_dict()")


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
    stored = [value for value in content.values() if isinstance(value, np.ndarray) and not _is_expanded(value)]
    num_bytes = sum(value.nbytes for value in stored)
    if num_bytes > _MOST_SHARED * path.stat().st_size:
        raise InputError(f"{path} is refused: its arrays share memory and have {num_bytes:,} bytes in all")
    state, others = {}, []
    for name, value in content.items():
        try:
            state[str(name)] = _to_array(value)
        except (TypeError, ValueError):
            kind = "an expanded array" if isinstance(value, np.ndarray) else type(value).__name__
            others.append(f"{printable(str(name))} ({kind})")
    if others:
        raise InputError(f"{path} holds what is not an array: {', '.join(others[:5])}; save model.state_dict() alone")
    return state


def _to_array(value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise TypeError(type(value).__name__)
    if _is_expanded(value):
        raise ValueError("more elements than are stored")
    with np.errstate(over="ignore"):  # infinity is reported
        return np.array(value, np.float32 if value.dtype.kind in "fV" else value.dtype)  # a copy that can be changed


def _is_expanded(value: np.ndarray) -> bool:
    return isinstance(value.base, np.ndarray) and value.nbytes > value.base.nbytes


def _without_module_prefix(state: dict[str, Any]) -> dict[str, Any]:
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state
