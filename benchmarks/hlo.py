"""Counts the bytes and operations of a compiled program from its text."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8}
_BYTES |= {"f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
# Memory spaces in TPU programs, whose layouts have tiles T(...): 1 is the memory on the chip, 2 marks transfers.
_NOT_MAIN_MEMORY = re.compile(r":(T\(.*S\(1\)|S\(2\))")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z\-]*)\((.*)")
# These move no data: they name, group or wait for results of other instructions.
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "replica-id"}
_FREE_CALLS = ('custom_call_target="ConcatBitcast"',)
_CONVOLUTIONS = {"BackwardFilter": "backward filter", "BackwardInput": "backward input"}
# The results of these begin with their operands.
_NAMING_OPERANDS = {"all-gather-start", "reduce-scatter-start", "all-to-all-start", "collective-permute-start"}
_NAMING_OPERANDS |= {"copy-start", "slice-start"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Kernel:
    """An instruction of a program's entry computation that runs on the device.

    Attributes:
        kind: such as "fusion kLoop", "convolution forward", "matmul" or "all-reduce".
        bytes: bytes of its operands and its result.
        flops: operations of a convolution or a matmul outside fusions, two per multiply-add; else 0.
        scope: the name scopes in which JAX traced it.
        sent, received: bytes that a device sends to a collective and receives from it; else 0.
    """

    name: str
    kind: str
    bytes: int
    flops: int
    scope: str
    sent: int = 0
    received: int = 0

    @property
    def is_collective(self) -> bool:
        """Whether devices exchange data in this instruction."""
        return self.kind in COLLECTIVES


def entry_kernels(text: str) -> list[Kernel]:
    """Returns the kernels of the entry computation. A kernel in a loop appears once per iteration.

    Args:
        text: `compiled.as_text()` of an optimised program.

    Raises:
        ValueError: the text has no entry computation, or an instruction cannot be read.
    """
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    if not entry:
        raise ValueError("no entry computation in the program's text")
    return _kernels(text, entry.start())


def _kernels(text: str, start: int) -> list[Kernel]:
    """Kernels of the computation whose text begins at `start`."""
    shapes: dict[str, str] = {}
    kernels = []
    for line in text[start:].split("\n}", 1)[0].splitlines()[1:]:
        match = _INSTRUCTION.match(line)
        if not match:
            if line.strip():
                raise ValueError(f"cannot read the instruction {line.strip()[:200]!r}")
            continue
        name, shape, operation, rest = match.groups()
        shapes[name] = shape
        if operation in _FREE or operation.endswith("-done") or any(call in line for call in _FREE_CALLS):
            continue
        if operation == "while":
            kernels += _kernels_of_loop(text, line)
            continue
        operands = [shapes[operand] for operand in re.findall(r"%([\w.\-]+)", _arguments(rest)) if operand in shapes]
        written, read = array_bytes(shape), sum(map(array_bytes, operands))
        received, sent = _bytes(shape), sum(map(_bytes, operands))
        if operation in _NAMING_OPERANDS:
            written, received = written - read, received - sent
        if operation == "slice-start":  # reads no more than it writes, and writes to the memory on the chip
            written, read = 0, received
        kind = _kind(operation, line)
        scope = re.search(r'op_name="([^"]*)"', line)
        exchanged = (sent, received) if kind in COLLECTIVES else (0, 0)
        flops = _flops(line, shape, operands)
        kernels.append(Kernel(name, kind, read + written, flops, scope[1] if scope else "", *exchanged))
    return kernels


def _kernels_of_loop(text: str, line: str) -> list[Kernel]:
    body = re.search(r"body=%?([\w.\-]+)", line)[1]
    times = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if not times:
        raise ValueError(f"the number of iterations of the loop {line.strip()[:60]!r} is unknown")
    start = re.search(rf"^%?{re.escape(body)} ", text, re.MULTILINE).start()
    return int(times[1]) * _kernels(text, start)


def array_bytes(shape: str) -> int:
    """Returns the bytes in main memory of a shape given as text, such as "(bf16[8,4]{1,0}, u8[0]{0})"."""
    return _bytes(shape, lambda layout: not _NOT_MAIN_MEMORY.search(layout))


def _bytes(shape: str, counts: Callable[[str], bool] = lambda layout: "S(2)" not in layout) -> int:
    """Bytes of the arrays whose layout fulfils `counts`."""
    arrays = _ARRAY.findall(shape)
    return sum(
        _BYTES[dtype] * math.prod(_sizes(dims)) for dtype, dims, layout in arrays if dtype in _BYTES and counts(layout)
    )


def _sizes(dims: str) -> list[int]:
    return [int(size) for size in dims.split(",") if size]


def _arguments(rest: str) -> str:
    """The text up to the closing parenthesis of an instruction's arguments; `rest` begins after the opening one."""
    depth = 1
    for position, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return rest[:position]
    return rest


def _kind(operation: str, line: str) -> str:
    if operation == "fusion":
        return "fusion " + re.search(r"kind=(\w+)", line)[1]
    if operation in ("copy-start", "slice-start"):
        return "transfer"
    if operation != "custom-call":
        return operation.removesuffix("-start")
    target = re.search(r'custom_call_target="([^"]+)"', line)[1]
    if "conv" in target:
        return "convolution " + next((word for part, word in _CONVOLUTIONS.items() if part in target), "forward")
    return "matmul" if "matmul" in target or "gemm" in target else target


def _flops(line: str, shape: str, operands: list[str]) -> int:
    if "dim_labels=" in line and len(operands) >= 2:
        return _convolution_flops(line, shape, operands)
    contracted = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:]\s*[\[{]"?([\d",]*)"?[\]}]', line)
    if contracted and operands:
        left = _sizes(_ARRAY.findall(operands[0])[0][1])
        depth = math.prod(left[int(axis)] for axis in re.findall(r"\d+", contracted[1]))
        return 2 * depth * math.prod(_sizes(_ARRAY.findall(shape)[0][1]))
    return 0


def _convolution_flops(line: str, shape: str, operands: list[str]) -> int:
    """Returns two operations per pair of a weight and an output position. Any of the three arrays is the result."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line).groups()
    arrays = [_sizes(_ARRAY.findall(text)[0][1]) for text in (operands[0], operands[1], shape)]
    if "BackwardFilter" in line:
        kernel, output = arrays[2], arrays[1]
    elif "BackwardInput" in line:
        kernel, output = arrays[1], arrays[0]
    else:
        kernel, output = arrays[1], arrays[2]
    features = labels[2].index("f")
    positions = math.prod(size for axis, size in enumerate(output) if axis != features)
    return 2 * positions * math.prod(kernel)
