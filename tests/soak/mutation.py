"""Damages bytes, text, JSON and arrays: truncated, joined, overwritten or malicious files."""

import copy
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_TEXTS = (
    *("NaN", "-Infinity", "1e999", "-1", "0", "1" * 5000, str(2**63), str(-(2**31)), "0x10", "1_000", "true"),
    *("null", "\0", "\ufeff", "\ud800", r"\ud800", r"\u0000", "\x85", "\u2028", "\u202e", "\r\n", "\t", "é", "日本"),
    *("[" * 2000, '{"":' * 2000, "]", "}", '"', ",", ":", "{}", "[]", '""', "\\", "%s", "%n"),
    *("../", "/etc/passwd", "C:\\x", "a/../../x", "..\\x", "//host/x", "~", "-", "=cmd()", "x" * 300),
    *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</title>", "javascript:alert(1)"),
)
_BYTES = (b"\xff\xfe", b"\xff" * 8, bytes(8), b"\x7f\xff\xff\xff", b"\x80\x04", b"\xff\xd8\xff", b"PK\x03\x04")
TOKENS = (*(text.encode("utf-8", "surrogatepass") for text in _TEXTS), *_BYTES, b"\x93NUMPY")

_NUMBERS = (0, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"))
_STRINGS = ("", " ", "\0", "a/b", "sky", "../x", "/etc/passwd", "C:\\x", "a/../../x", "\ud800", "\udcff", "x\ny")
_STRINGS += ("\u2028", "x" * 5000, "<b>", "=1+1", ".", "..", "NaN", "1")
_VALUES = (None, True, False, *_NUMBERS, *_STRINGS, [], {}, [[]], [None], {"": None})


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Applies up to four mutations to `data`."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 4))):
        data = _flipped(data, rng) if rng.random() < 0.2 else _spliced(data, rng)
    return data


def damaged_json(value: Any, rng: random.Random) -> bytes:
    """A JSON file of `value` with changed, missing, additional or repeated fields, or with damaged bytes."""
    if rng.random() < 0.3:
        return damaged(json.dumps(value, ensure_ascii=rng.random() < 0.5).encode(), rng)
    tree = json.loads(json.dumps(value))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        tree = _replaced(tree, rng)
    text = json.dumps(tree)
    if rng.random() < 0.1:  # a repeated field
        name = rng.choice((list(tree) if isinstance(tree, dict) else []) or ["x"])
        text = text.replace("{", f"{{{json.dumps(name)}: {json.dumps(_odd(rng))}, ", 1)
    content = text.encode()
    return damaged(content, rng) if rng.random() < 0.1 else content


def damaged_lines(lines: list[str], rng: random.Random) -> bytes:
    """A text file of `lines` with changed, missing or repeated lines, or with damaged bytes."""
    chosen = list(lines)
    for _ in range(rng.choice((0, 1, 2))):
        place = rng.randrange(len(chosen) + 1)
        repeated, token = rng.choice(chosen or [""]), rng.choice(TOKENS).decode(errors="replace")
        removed, inserted = rng.choice(((0, [repeated]), (1, []), (0, [token])))
        chosen[place : place + removed] = inserted
    return damaged(encoded(chosen), rng) if rng.random() < 0.5 else encoded(chosen)


def in_memory(save: Callable[..., Any], *args: Any, **options: Any) -> bytes:
    """The file that `save(file, *args, **options)` writes."""
    stream = io.BytesIO()
    save(stream, *args, **options)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    """A `.npy` file."""
    return in_memory(np.save, array, allow_pickle=True)


def encoded(content: Any) -> bytes:
    """The content of a file: bytes as they are, a list as lines, an array as `.npy`, a dict as JSON."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, list):
        return ("\n".join(content) + "\n").encode()
    return npy(content) if isinstance(content, np.ndarray) else json.dumps(content).encode()


def damaged_array(array: np.ndarray, rng: random.Random) -> bytes:
    """A `.npy` file with damaged bytes, or another value, shape, dtype or kind of file."""
    edit = rng.randrange(6)
    if edit == 0:
        return damaged(in_memory(np.savez, array), rng)
    if edit == 1:
        array = array.astype(rng.choice((object, "U4", "f2", "c8", "u1", "?", "i8", "V8", "M8[s]")))
    if edit == 2:
        shapes = (array.ravel(), array[:0], array[None], array[0], array.ravel()[0], array.T, array[::-1])
        return npy(np.asarray(rng.choice(shapes)))
    if edit == 3:
        array = array.copy()
        array.flat[rng.randrange(array.size)] = rng.choice((0, -1, 1, 2, 5, 6, 127))
        return npy(array)
    return damaged(npy(array), rng)


def write_damaged(path: Path, content: Any, rng: random.Random) -> bytes:
    """Writes the file of `content`, see `encoded`, with damage that fits its kind, and returns its bytes."""
    kinds = {bytes: damaged, list: damaged_lines, np.ndarray: damaged_array, dict: damaged_json}
    data = kinds[type(content)](content, rng)
    write_files({path.name: data}, path.parent)
    return data


def write_with_damage(contents: dict[str, Any], folder: Path, rng: random.Random) -> tuple[str, dict[str, bytes]]:
    """Writes files and damages one of them; returns its name, and the bytes of all."""
    broken = rng.choice(list(contents))
    files = {name: encoded(content) for name, content in contents.items()}
    write_files(files, folder)
    files[broken] = write_damaged(folder / broken, contents[broken], rng)
    return broken, files


def write_files(files: dict[str, bytes], folder: Path) -> None:
    """Writes files by their names, with the folders that they need."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _spliced(content: bytes, rng: random.Random) -> bytes:
    """Cuts `content`, or replaces, removes, inserts or repeats bytes, or writes a token or a number into it."""
    start, source = (rng.randrange(len(content) + 1) for _ in range(2))
    length = min(int(rng.expovariate(1 / 12)) + 1, 200)
    noise, token = rng.randbytes(length), rng.choice(TOKENS)
    size = rng.choice((0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, len(content)))
    width = rng.choice((1, 2, 4, 8))
    splices = (
        (len(content), b""),
        (length, noise),
        (length, b""),
        (0, noise),
        (0, content[source : source + length] * rng.choice((1, 1, 2, 50))),
        (rng.choice((0, 0, len(token))), token),
        (width, (size % 256**width).to_bytes(width, rng.choice(("big", "little")))),
    )
    removed, inserted = rng.choice(splices)
    return content[:start] + inserted + content[start + removed :]


def _replaced(value: Any, rng: random.Random) -> Any:
    """`value` with one change at a random place."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return _odd(rng)
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    place, edit = rng.choice(places), rng.random()
    if edit < 0.15:
        del value[place]
    elif edit < 0.3 and isinstance(value, dict):
        value[str(_odd(rng))] = value.pop(place)
    elif edit < 0.3:
        value.append(value[place])
    else:
        value[place] = _replaced(value[place], rng)
    return value


def _odd(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(_VALUES))
