"""Reads and writes PyTorch and safetensors files. Reading a file never executes code from it."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import atomic_path, read_json
from aia_jax.utils.messages import printable
from aia_jax.weights.torch_archive import read_archive, write_archive
from aia_jax.weights.torch_content import find_weights
from aia_jax.weights.torch_pickle import ForbiddenError

_MOST_SHARED = 4  # copies of a storage that all arrays of a file may need on average
_INDEX = ".index.json"  # end of the name of a file that lists the shards of a model
_SUFFIXES = (_INDEX, ".safetensors", ".bin", ".pth", ".pt", ".ckpt")
_NO_WEIGHTS = re.compile(r"\.|.*(optim|sched|scaler|training_args|rng|random_states)")  # hidden, or of a training
_SHARD = re.compile(r"(.+?)-\d+-of-0*(\d+)(\.\w+)")
# Weights in folders of Hugging Face's libraries, the preferred file first.
_IN_FOLDERS = (f"model.safetensors{_INDEX}", "model.safetensors", f"pytorch_model.bin{_INDEX}", "pytorch_model.bin")
_OTHER_FORMATS = {  # the first bytes of a file, and what it is
    rb"version https://git-lfs": "only a pointer to a file of Git LFS; run git lfs pull",
    rb"(?i)\s*<(!doctype|html|head|\?xml)": "a web page, perhaps of a failed download; download it again",
    rb"\x89HDF": "in HDF5, the format of Keras",
    rb"[\x81-\x8f\xde][\xa1-\xbf\xd9]": "in msgpack, the format of Flax",
    rb"\x08[\x01-\x14][\x12\x1a\x22\x3a\x42]": "a program of ONNX or TensorFlow",
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP": "a photo",
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!": "compressed; decompress it first",
    rb"(?s).{257}ustar": "a tar archive; unpack it first",
    rb"[\t\r\n -~]+\Z|[\t\r\n -~]{40}": "a text file, such as the index of other files",
}


def read_torch_file(
    source: str | Path, key: str = ""
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None, list[str]]:
    """Reads a `.safetensors` file, a file of `torch.save`, the index of a sharded model, or a folder with one of them.

    Does not use torch. See `find_weights` for what is found in a file. The names of SGRAF's arrays begin with `0.`,
    `1.` and `2.`.

    Args:
        key: `config.weights_key`: where in the file the weights are. "": anywhere.

    Returns:
        The arrays, `{name: array}`, with all floating types converted to float32; the file's options `opt` as a dict,
        or None; and sentences that say which arrays of the file are not used.

    Raises:
        InputError: the file is missing, damaged, truncated or of another format. Or its weights contain NaN, infinity
            or no arrays, or one of several sets of weights must be chosen.
    """
    path = find_weights_file(source) or Path(source)
    if not path.is_file():
        raise InputError(f"{path} is no file; give a .pth, .pt, .bin or .safetensors file")
    paths = _shards(path)
    parts = [_read_file(part) for part in paths]
    content = {name: value for part in parts for name, value in part.items()} if len(paths) > 1 else parts[0]
    found, options, notes = find_weights(content, key, str(path))
    others = [printable(file.name) for file in _weights_in(Path(source)) if file not in {path, *paths}]
    if others:
        notes.append(f"{source} also holds {', '.join(others)}; {path.name} is taken. To take another file, name it")
    num_bytes = sum(value.nbytes for value in found.values())
    if num_bytes > _MOST_SHARED * sum(part.stat().st_size for part in paths):
        raise InputError(f"{path} is refused: its arrays share memory and have {num_bytes:,} bytes in all")
    state = {name: _to_array(value) for name, value in found.items()}
    broken = [name for name, value in state.items() if value.dtype.kind in "fc" and not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{path} holds NaN or infinity in {len(broken)} array(s), first in {printable(broken[0])}")
    return state, options, notes


def find_weights_file(source: str | Path) -> Path | None:
    """Returns the weights file in a folder of another tool, or None for a file, a run and other folders.

    Raises InputError for a folder with several weights files, or with files that the tool that wrote them must join.
    """
    folder = Path(source)
    if not folder.is_dir() or (folder / "checkpoints").is_dir():
        return None
    if any(folder.glob("*.distcp")) or (folder / "zero_to_fp32.py").is_file():
        raise InputError(
            f"{folder} is a distributed checkpoint; join its weights first, in DeepSpeed with its zero_to_fp32.py, in "
            f"PyTorch with python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pth"
        )
    files = _weights_in(folder) or sorted(folder.glob("*/mp_rank_00_model_states.pt"))  # the latter of DeepSpeed
    known = [folder / name for name in _IN_FOLDERS if folder / name in files]
    indices = [path for path in files if path.name.endswith(_INDEX)]
    found = known[:1] or indices or [path for path in files if not _SHARD.fullmatch(path.name)] or files[:1]
    if len(found) > 1:
        names = ", ".join(printable(str(path.relative_to(folder))) for path in found)
        raise InputError(f"{folder} holds several weights files, {names}; give one of them")
    return found[0] if found else None


def _weights_in(folder: Path) -> list[Path]:
    """Returns the weights files and indices in a folder, or [] for a file."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in files if path.name.endswith(_SUFFIXES) and not _NO_WEIGHTS.match(path.name)]


def _shards(path: Path) -> list[Path]:
    """Returns the files that an index lists, or only `path`. Raises InputError for a shard without the others."""
    if not path.name.endswith(_INDEX):
        match = _SHARD.fullmatch(path.name)
        if match and int(match[2]) > 1:
            index = path.with_name(f"{match[1]}{match[3]}{_INDEX}")
            action = "give their index" if index.is_file() else "put their index beside them"
            raise InputError(f"{path} is one of {match[2]} shards of a model; {action}, {index}")
        return [path]
    index = read_json(path, "the index of a sharded model")
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files or any(name != Path(str(name)).name for name in files.values()):
        raise InputError(f"{path} is not the index of a sharded model: its weight_map does not list files beside it")
    paths = [path.with_name(name) for name in sorted(set(files.values()))]
    if missing := [part.name for part in paths if not part.is_file()]:
        raise InputError(f"{path} lists {len(paths)} shards; missing: {', '.join(map(printable, missing))}")
    return paths


def _read_file(path: Path) -> Any:
    """Reads a safetensors file or a file of `torch.save`. The content decides, not the name."""
    with path.open("rb") as file:
        start = file.read(512)
    for pattern, found in _OTHER_FORMATS.items():
        if re.match(pattern, start):
            raise InputError(f"{path} is {found}. A file of torch.save or safetensors is needed")
    if start[8:9] == b"{" or (path.suffix == ".safetensors" and start[:2] not in (b"PK", b"\x80\x02")):
        return _read_safetensors(path)
    return _read_torch(path)


def write_torch_file(
    path: str | Path, state: dict[str, np.ndarray], *, beside: Mapping[str, Any] | None = None
) -> None:
    """Writes a `.safetensors` file, or a file for `torch.load`. The write is atomic.

    Args:
        state: `{name: array}`.
        beside: only for SGRAF: all entries of the checkpoint except the arrays. The entry `opt` is a dict of options.
            The arrays become the entry `model`, a list of three state dicts. Names must begin with `0.`, `1.` and `2.`.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            arrays = {name: np.asarray(value, order="C") for name, value in state.items()}
            safetensors.numpy.save_file(arrays, temporary)
        else:
            content: dict[str, Any] = dict(state)
            if beside is not None:
                parts = [{n[2:]: value for n, value in state.items() if n.startswith(f"{part}.")} for part in range(3)]
                content = {**beside, "model": parts, "opt": argparse.Namespace(**beside["opt"])}
            write_archive(temporary, content)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged, truncated or not a safetensors file: {error}") from None


def _read_torch(path: Path) -> Any:
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


def _to_array(value: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinity is reported
        return np.array(value, np.float32 if value.dtype.kind in "fV" else value.dtype)  # a copy that can be changed
