"""Interprets the pickles in files of `torch.save`: arrays, options and plain containers, and nothing else.

This module interprets the instructions of a pickle itself, and never imports or calls a name from the file. Reading a
file therefore never executes code from it. Objects of other classes, such as a training program's settings, become
`Opaque`. Names that only a malicious file needs are refused. Source: torch/_weights_only_unpickler.py.
"""

import argparse
import collections
import pickletools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from aia_jax.utils.messages import printable

DTYPES = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
}


class ForbiddenError(ValueError):
    """The file asks to load or call something other than arrays, options and plain containers."""


class _Global(NamedTuple):
    """A name that a pickle loads."""

    name: str


@dataclass(eq=False)
class Opaque:
    """An object of a class that is not read. `is_module`: whether it is a module of torch with its arrays."""

    name: str
    is_module: bool = False


def _rebuild_array(
    storage: np.ndarray,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: dict[str, Any] | None,
    metadata: dict[str, Any] | None = None,
) -> np.ndarray:
    types = ((storage, np.ndarray), (requires_grad, bool), (hooks, dict | None))
    if not all(isinstance(value, kind) for value, kind in types) or not _are_sizes((offset,), size, stride):
        raise ValueError("an array with a size, a stride or an offset of the wrong type")
    if metadata:
        raise ForbiddenError("it holds an array whose stored values are not yet conjugated or negated")
    # NumPy's own check overflows.
    end = offset + sum(step * (n - 1) for n, step in zip(size, stride, strict=True)) if 0 not in size else offset - 1
    if end >= storage.size:
        raise ValueError("an array is larger than its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.ndarray(size, storage.dtype, storage, offset * storage.itemsize, strides)


def _are_sizes(*tuples: tuple[int, ...]) -> bool:
    return all(type(item) is tuple and all(type(number) is int and number >= 0 for number in item) for item in tuples)


def _make_ordered_dict(pairs: list[Any] | None = None) -> collections.OrderedDict:
    """Python 2 writes a list of pairs as an argument. Empties it, so that no file can have it copied many times."""
    if pairs is None:
        return collections.OrderedDict()
    if type(pairs) is not list:
        raise ValueError("an OrderedDict of something that is not a list")
    _checked_keys(key for key, _ in pairs)
    found = collections.OrderedDict(pairs)
    pairs.clear()
    return found


def _checked_keys(keys: Iterable[Any]) -> list[Any]:
    """Raises ValueError for a nested tuple: computing its hash may take any time."""
    keys = list(keys)
    if any(isinstance(item, tuple) for key in keys if isinstance(key, tuple) for item in key):
        raise ValueError("a nested tuple as a key")
    return keys


_CALLS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": argparse.Namespace,
    "collections.OrderedDict": _make_ordered_dict,
    "torch._utils._rebuild_tensor": lambda *view: _rebuild_array(*view, False, None),
    "torch._utils._rebuild_tensor_v2": _rebuild_array,
    "torch._utils._rebuild_parameter": lambda array, *_: array,
    "torch.nn.parameter.Parameter": lambda array, *_: array,
}
_LONGEST_NAME = 1000
# Modules and functions that run code. Nothing here runs them: they only show that a file is malicious.
_CODE = re.compile(
    r"(os|posix|nt|sys|subprocess|pty|socket|shutil|ctypes|runpy|importlib|imp|code|_?pickle|marshal|webbrowser)\..*"
    r"|(__builtin__|builtins)\.(?!(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str"
    r"|tuple)$).*|torch\.(load|hub\..*|jit\..*)|.*\b(eval|exec|getattr|system|popen)"
)
_STORAGES = {f"torch.{name}Storage": np.dtype(dtype) for name, dtype in DTYPES.items()}
_DATA_NAMES = {*_STORAGES, *(f"torch.{np.dtype(dtype).name}" for dtype in DTYPES.values())}


class Pickle:
    """Interprets pickles. `load_storage(dtype, key, number of elements, *others)` returns arrays `[N]`."""

    def __init__(self, load_storage: Callable[..., np.ndarray]):
        self.load_storage = load_storage

    def read(self, file: BinaryIO) -> Any:
        """Returns the object of the pickle that begins at the file's position, and moves the position to its end."""
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        while True:
            name, argument = _read_instruction(file)
            if name == "STOP":
                (result,) = self.stack
                return result
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            elif name in _PLAIN:
                self.stack.append(argument)
            elif name in _TUPLES:
                self.stack.append(tuple(self._pop(_TUPLES[name])))
            else:
                getattr(self, f"_{name.lower()}")(argument)

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("the pickle takes more values than it has")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def _pop_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def _proto(self, version: int) -> None:
        if version not in range(2, 6):
            raise ForbiddenError(f"its pickle has protocol {version}, not one of 2 to 5")

    def _mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _tuple(self, _: None) -> None:
        values = tuple(self._pop_mark())
        self.stack.append(values)

    def _binput(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def _binget(self, number: int) -> None:
        self.stack.append(self.memo[number])

    _long_binput, _long_binget = _binput, _binget

    def _memoize(self, _: None) -> None:
        self._binput(len(self.memo))

    def _frame(self, _: int) -> None:
        """Needs no action: a frame only says how many bytes to read at once."""

    def _append(self, _: None) -> None:
        self._extend(self._pop(1))

    def _appends(self, _: None) -> None:
        self._extend(self._pop_mark())

    def _extend(self, values: list[Any]) -> None:
        if type(target := self.stack[-1]) is list:
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise ValueError("the pickle appends to something that is not a list")

    _additems = _appends

    def _frozenset(self, _: None) -> None:
        self._pop_mark()
        self.stack.append(Opaque("frozenset"))

    def _setitem(self, _: None) -> None:
        self._update(self._pop(2))

    def _setitems(self, _: None) -> None:
        self._update(self._pop_mark())

    def _update(self, values: list[Any]) -> None:
        if isinstance(target := self.stack[-1], Opaque):
            return
        if not isinstance(target, dict):
            raise ValueError("the pickle sets an entry of something that is not a dict")
        for key, value in zip(_checked_keys(values[::2]), values[1::2], strict=True):
            target[key] = value

    def _global(self, argument: str) -> None:
        name = argument.replace(" ", ".", 1)
        if name.startswith("torch._utils._rebuild") and name not in _CALLS:
            raise ForbiddenError("it holds a tensor that is sparse, quantized, on no device, or of a rare dtype")
        if _CODE.fullmatch(name):
            raise ForbiddenError(f"it asks to load {printable(name)}, which can run code")
        self.stack.append(_Global(name[:_LONGEST_NAME]))

    def _stack_global(self, _: None) -> None:
        module, name = self._pop(2)
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is not text")
        self._global(f"{module} {name}")

    def _reduce(self, _: None) -> None:
        function, arguments = self._pop(2)
        if not isinstance(function, _Global) or function.name in _DATA_NAMES or type(arguments) is not tuple:
            raise ForbiddenError("its pickle calls something that is not a function")
        is_known = function.name in _CALLS
        self.stack.append(_CALLS[function.name](*arguments) if is_known else Opaque(function.name))

    _newobj = _reduce

    def _newobj_ex(self, _: None) -> None:
        self._pop(1)
        self._reduce(None)

    def _build(self, _: None) -> None:
        (state,) = self._pop(1)
        if isinstance(target := self.stack[-1], Opaque):
            target.is_module |= isinstance(state, dict) and "_modules" in state
            return
        if not isinstance(target, argparse.Namespace | collections.OrderedDict) or not isinstance(state, dict):
            raise ForbiddenError(f"its pickle sets attributes of a {type(target).__name__}")
        if isinstance(target, argparse.Namespace):  # the attribute `_metadata` of a state dict has no use here
            vars(target).update({name: value for name, value in state.items() if isinstance(name, str)})

    def _binpersid(self, _: None) -> None:
        (identity,) = self._pop(1)
        if identity[:1] == ("module",) and isinstance(identity[1], _Global) and identity[1].name not in _DATA_NAMES:
            self.stack.append(identity[1])  # the class of a module, with its source code, before torch 1.6
            return
        kind, dtype, key, device, num_elements, *view = identity
        is_storage = kind == "storage" and isinstance(dtype, _Global) and dtype.name in _STORAGES
        is_storage = is_storage and type(num_elements) is int
        if not is_storage or not isinstance(key, str) or not isinstance(device, str):
            raise ForbiddenError("its pickle refers to something that is not the storage of an array")
        self.stack.append(self.load_storage(_STORAGES[dtype.name], key, num_elements, *view))

    def _short_binstring(self, text: str) -> None:
        self.stack.append(text.encode("latin1").decode())  # Python 2's strings


def _read_instruction(file: BinaryIO) -> tuple[str, Any]:
    """Returns the name and the argument of the next instruction. Does not read arguments of forbidden instructions."""
    code = file.read(1)
    if not code:
        raise EOFError("the pickle has no end")
    instruction = pickletools.code2op.get(code.decode("latin1"))
    if instruction is None:
        raise ValueError(f"{code!r} is not an instruction of a pickle")
    if instruction.name not in _KNOWN:
        raise ForbiddenError(f"its pickle has the instruction {instruction.name}, which torch.save does not write")
    return instruction.name, instruction.arg and instruction.arg.reader(file)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": lambda: Opaque("set")}
_PLAIN = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_PLAIN += ("BINBYTES", "SHORT_BINBYTES")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_METHODS = (  # instructions with a method of `Pickle`
    *("PROTO", "MARK", "TUPLE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "APPEND", "APPENDS", "SETITEM"),
    *("SETITEMS", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "SHORT_BINSTRING"),
    *("MEMOIZE", "FRAME", "ADDITEMS", "FROZENSET", "STACK_GLOBAL", "NEWOBJ_EX"),
)
_KNOWN = frozenset({"STOP", *_CONSTANTS, *_EMPTY, *_PLAIN, *_TUPLES, *_METHODS})
