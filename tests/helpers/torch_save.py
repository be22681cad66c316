"""Files as torch.save writes them, made without torch from arrays in place of tensors, and with torch."""

import collections
import functools
import io
import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np
import pytest

from aia_jax.weights.torch_archive import _MAGIC_NUMBER, _PROTOCOL_VERSION
from aia_jax.weights.torch_pickle import DTYPES
from tests.helpers.references import needs_torch

_SIZES = {"short": 2, "int": 4, "long": 4}
_FACTS = {"protocol_version": _PROTOCOL_VERSION, "little_endian": True, "type_sizes": _SIZES}


def torch_bytes(content: Any, *, old: bool = False) -> bytes:
    """A file as torch.save writes it, or (`old`) as it did before torch 1.6. Views of an array share its storage."""
    stream = io.BytesIO()
    pickler = _Pickler(stream, old)
    pickler.dump(content)
    storages = {key: storage.base for storage, key in pickler.keys.values()}
    return old_bytes(stream.getvalue(), storages) if old else zip_bytes(stream.getvalue(), storages)


def zip_bytes(content: bytes, storages: dict[str, np.ndarray] | None = None, byte_order: str = "little") -> bytes:
    """A zip archive with the pickle `content`."""
    parts = {"data.pkl": content, "byteorder": byte_order.encode()}
    parts |= {f"data/{key}": storage.tobytes() for key, storage in (storages or {}).items()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, part in {**parts, "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", part)
    return stream.getvalue()


def old_bytes(content: bytes, storages: dict[str, np.ndarray] | None = None, **facts: Any) -> bytes:
    """A sequence of pickles and storages, as before torch 1.6, with the pickle `content`."""
    pickles = [pickle.dumps(value, 2) for value in (_MAGIC_NUMBER, _PROTOCOL_VERSION, _FACTS | facts)]
    arrays = [struct.pack("<q", storage.size) + storage.tobytes() for storage in (storages or {}).values()]
    return b"".join([*pickles, content, pickle.dumps(list(storages or {}), 2), *arrays])


def real_bytes(content: Any, *, old: bool = False) -> bytes:
    """The file that torch.save itself writes, with tensors for arrays."""
    import torch

    stream = io.BytesIO()
    torch.save(_tensors(content), stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


ZIP_WRITERS = [pytest.param(torch_bytes, id="zip"), pytest.param(real_bytes, id="torch", marks=needs_torch)]
WRITERS = [
    *ZIP_WRITERS,
    pytest.param(functools.partial(torch_bytes, old=True), id="old"),
    pytest.param(functools.partial(real_bytes, old=True), id="torch-old", marks=needs_torch),
]


class _Name(NamedTuple):
    """A name that a pickle loads."""

    module: str
    name: str

    def __call__(self) -> None:
        """Needed, as pickle checks that functions are callable."""


_name = functools.cache(_Name)


class _Storage(NamedTuple):
    """The storage of an array."""

    base: np.ndarray


class _Pickler(pickle._Pickler):
    """Writes arrays as torch.save writes tensors."""

    def __init__(self, stream: io.BytesIO, old: bool):
        super().__init__(stream, protocol=2)
        self.old = old
        self.keys: dict[int, tuple[_Storage, str]] = {}

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if not isinstance(value, _Storage):
            return None
        _, key = self.keys.setdefault(id(value.base), (value, str(len(self.keys))))
        kind = next(kind for kind, dtype in DTYPES.items() if dtype == value.base.dtype)
        identity = ("storage", _name("torch", f"{kind}Storage"), key, "cpu", value.base.size)
        return (*identity, None) if self.old else identity

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return NotImplemented
        base, offset, strides = _layout(value)
        arguments = (_Storage(base), offset, value.shape, strides, False, collections.OrderedDict())
        return _name("torch._utils", "_rebuild_tensor_v2"), arguments

    def _save_name(self, value: _Name) -> None:
        self.write(b"c" + "\n".join((*value, "")).encode())
        self.memoize(value)

    dispatch = {**pickle._Pickler.dispatch, _Name: _save_name}  # noqa: RUF012


def _layout(value: np.ndarray) -> tuple[np.ndarray, int, tuple[int, ...]]:
    """The array whose memory a view uses, and the view's offset and strides in elements."""
    if min(value.strides, default=0) < 0:  # not possible in torch
        value = value.copy()
    base = value if value.base is None else value.base
    offset = (value.ctypes.data - base.ctypes.data) // value.itemsize
    return base, offset, tuple(step // value.itemsize for step in value.strides)


def _tensors(content: Any) -> Any:
    import torch

    if isinstance(content, np.ndarray):
        base, offset, strides = _layout(content)
        is_bfloat16 = base.dtype == DTYPES["BFloat16"]
        flat = torch.from_numpy((base.view(np.int16) if is_bfloat16 else base).copy().reshape(-1))
        return (flat.view(torch.bfloat16) if is_bfloat16 else flat).as_strided(content.shape, strides, offset)
    if isinstance(content, dict):
        return type(content)((name, _tensors(value)) for name, value in content.items())
    if type(content) in (list, tuple):
        return type(content)(map(_tensors, content))
    return content
