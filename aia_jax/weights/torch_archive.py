"""Reads and writes files of `torch.save` without torch.

A file of `torch.save` is a zip archive with a pickle and one file per storage. Before torch 1.6, it was a sequence of
pickles and storages. Source: torch/serialization.py.
"""

import argparse
import io
import itertools
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from aia_jax.utils.messages import printable
from aia_jax.weights.torch_pickle import DTYPES, ForbiddenError, Pickle

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_ALIGNMENT = 64  # torch aligns storages in the archive, so that it can map them


def read_archive(path: Path) -> Any:
    """Reads a file of `torch.save`.

    Returns:
        The saved object, with tensors and parameters as arrays and `argparse.Namespace` for options.

    Raises:
        ForbiddenError: the file asks to load or call something else, or it is another archive.
        OSError, EOFError, ValueError and others: the file is damaged, truncated, or not a file of `torch.save`.
    """
    with path.open("rb") as file:
        if file.read(4) == b"PK\3\4":
            return _read_zip(file, path.stat().st_size)
        file.seek(0)
        return _read_legacy(file, path.stat().st_size)


def _read_zip(file: BinaryIO, num_bytes: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        names, parts = archive.namelist(), archive.infolist()
        prefix = names[0].partition("/")[0] + "/"
        if prefix + "constants.pkl" in names:
            raise ForbiddenError("it is a TorchScript program; save model.state_dict()")
        if prefix + "data.pkl" not in names:
            raise ForbiddenError(f"it is a zip archive ({', '.join(map(printable, names[:3]))}); unpack it")
        if (unpacked := sum(part.file_size for part in parts)) > num_bytes:  # torch.save does not compress
            raise ForbiddenError(
                f"a file of {num_bytes:,} bytes that unpacks to {unpacked:,}, perhaps a zip bomb. If it was "
                "compressed, save it again with torch.save"
            )
        if not any(part.CRC for part in parts):  # torch.serialization.set_crc32_options(False) writes zeros
            for part in parts:
                del part.CRC  # zipfile does not check a part without this attribute

        def read(name: str) -> bytes:
            data = archive.read(prefix + name)
            if len(data) != archive.getinfo(prefix + name).file_size:
                raise EOFError(f"{name} is truncated")
            return data

        if prefix + "byteorder" in names and read("byteorder") != b"little":
            raise ValueError("its byte order is not little-endian")
        int(read("version"))  # torch needs it, too
        storages: dict[str, np.ndarray] = {}

        def load_storage(dtype: np.dtype, key: str, num_elements: int) -> np.ndarray:
            if key not in storages:
                storages[key] = np.frombuffer(read(f"data/{key}"), dtype)
            if len(storages[key]) != num_elements or storages[key].dtype != dtype:
                raise ValueError(f"storage {key} has another size or type than its arrays say")
            return storages[key]

        return Pickle(load_storage).read(io.BytesIO(read("data.pkl")))


def _read_legacy(file: BinaryIO, num_bytes: int) -> Any:
    storages: dict[str, np.ndarray] = {}
    left = num_bytes

    def reserve_storage(dtype: np.dtype, key: str, num_elements: int, view: None) -> np.ndarray:
        nonlocal left
        if view is not None:
            raise ValueError("its arrays have views of storages")
        if key not in storages:
            left -= num_elements * dtype.itemsize
            if num_elements < 0 or left < 0:
                raise ValueError("its arrays have more bytes than the file")
            storages[key] = np.zeros(num_elements, dtype)
        if len(storages[key]) != num_elements or storages[key].dtype != dtype:
            raise ValueError(f"storage {key} has two sizes or types")
        return storages[key]

    reader = Pickle(reserve_storage)
    if reader.read(file) != _MAGIC_NUMBER or reader.read(file) != _PROTOCOL_VERSION:
        raise ValueError("the header is not one of torch.save; files of pickle.dump are not read")
    reader.read(file)  # facts about the machine; the storages are little-endian on all machines
    content, keys = reader.read(file), reader.read(file)
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("its arrays refer to other storages than it holds")
    for key in keys:
        storage = storages[key]
        (num_elements,) = struct.unpack("<q", file.read(8))
        data = file.read(storage.nbytes)
        if num_elements != len(storage) or len(data) != storage.nbytes:
            raise ValueError(f"storage {key} has another size than its arrays say")
        storage[:] = np.frombuffer(data, storage.dtype)
    return content


def write_archive(path: Path, content: Any) -> None:
    """Writes a file that `torch.load(weights_only=True)` reads; its arrays become tensors.

    Args:
        content: dicts, lists, tuples, str, bool, int, float, None, `argparse.Namespace` and arrays.

    Raises:
        TypeError: `content` has another type, or an array has a dtype that torch lacks.
    """
    arrays: list[np.ndarray] = []
    pickle = b"\x80\2" + b"".join(_write(content, arrays)) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _write_part(archive, "data.pkl", pickle)
        _write_part(archive, "byteorder", b"little")
        for number, array in enumerate(arrays):
            _write_part(archive, f"data/{number}", array.tobytes())
        _write_part(archive, "version", b"3\n")


def _write_part(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    part = zipfile.ZipInfo(f"archive/{name}")
    start = archive.fp.tell() + zipfile.sizeFileHeader + len(part.filename) + 4
    padding = -start % _ALIGNMENT
    part.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(part, data)


_CONTAINERS = {tuple: (b"(", b"t"), list: (b"](", b"e"), dict: (b"}(", b"u")}  # instructions before and after items


def _write(value: Any, arrays: list[np.ndarray]) -> Iterator[bytes]:
    match value:
        case None | True | False:
            yield {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            yield b"\x8a" + bytes([len(encoded)]) + encoded
        case float():
            yield b"G" + struct.pack(">d", value)
        case str():
            encoded = value.encode("utf-8", "surrogatepass")
            yield b"X" + struct.pack("<I", len(encoded)) + encoded
        case tuple() | list() | dict():
            start, end = _CONTAINERS[next(kind for kind in _CONTAINERS if isinstance(value, kind))]
            yield start
            for item in itertools.chain(*value.items()) if isinstance(value, dict) else value:
                yield from _write(item, arrays)
            yield end
        case argparse.Namespace():
            yield b"cargparse\nNamespace\n)\x81"
            yield from _write(vars(value), arrays)
            yield b"b"
        case np.ndarray():
            yield from _write_array(value, arrays)
        case _:
            raise TypeError(f"a file of torch cannot hold a {type(value).__name__}")


def _write_array(value: np.ndarray, arrays: list[np.ndarray]) -> Iterator[bytes]:
    name = next((name for name, dtype in DTYPES.items() if value.dtype == dtype), None)
    if name is None:
        raise TypeError(f"torch has no tensors of {value.dtype}")
    strides = tuple(math.prod(value.shape[axis + 1 :]) for axis in range(value.ndim))  # those of NumPy may be negative
    yield b"ctorch._utils\n_rebuild_tensor_v2\n(("
    yield from _write("storage", arrays)
    yield f"ctorch\n{name}Storage\n".encode()
    for part in (str(len(arrays)), "cpu", value.size):
        yield from _write(part, arrays)
    arrays.append(value)
    yield b"tQ"
    for part in (0, value.shape, strides, False):
        yield from _write(part, arrays)
    yield b"ccollections\nOrderedDict\n)RtR"
