"""Damages bytes, text, JSON and arrays: truncated, joined, overwritten or malicious files."""

import copy
import functools
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
    content = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 4))):
        rng.choice(_MUTATIONS)(content, rng)
    return bytes(content)


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
        edit = rng.randrange(3)
        if edit == 0:
            chosen.insert(place, rng.choice(chosen or [""]))
        elif edit == 1:
            chosen[place : place + 1] = []
        else:
            chosen.insert(place, rng.choice(TOKENS).decode(errors="replace"))
    data = ("\n".join(chosen) + "\n").encode()
    return damaged(data, rng) if rng.random() < 0.5 else data


def in_memory(save: Callable[..., Any], *args: Any, **options: Any) -> bytes:
    """The file that `save(file, *args, **options)` writes."""
    stream = io.BytesIO()
    save(stream, *args, **options)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    """A `.npy` file."""
    return in_memory(np.save, array, allow_pickle=True)


def encoded(content: Any) -> bytes:
    """The file of bytes, of lines (a list), of an array, or of a JSON document (a dict)."""
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


def damage(content: Any, rng: random.Random) -> bytes:
    """Damages the file of `content` according to its kind, see `encoded`."""
    kinds = {bytes: damaged, list: damaged_lines, np.ndarray: damaged_array, dict: damaged_json}
    return kinds[type(content)](content, rng)


def write_damaged(path: Path, content: Any, rng: random.Random) -> bytes:
    """Writes the file of `content` with damage, and returns it."""
    data = damage(content, rng)
    write_files({path.name: data}, path.parent)
    return data


def write_with_damage(contents: dict[str, Any], folder: Path, rng: random.Random) -> tuple[str, dict[str, bytes]]:
    """Writes files and damages one of them; returns its name, and all files."""
    broken = rng.choice(list(contents))
    files = {name: encoded(content) for name, content in contents.items()}
    files[broken] = damage(contents[broken], rng)
    write_files(files, folder)
    return broken, files


def write_files(files: dict[str, bytes], folder: Path) -> None:
    """Writes files by their names, with the folders that they need."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _flip(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content) + 1) :]


def _replace(content: bytearray, rng: random.Random, *, remove: bool = True, insert: bool = True) -> None:
    start, length = _stretch(content, rng)
    content[start : start + length * remove] = rng.randbytes(length) if insert else b""


def _repeat(content: bytearray, rng: random.Random) -> None:
    start, length = _stretch(content, rng)
    place = rng.randrange(len(content) + 1)
    content[place:place] = content[start : start + length] * rng.choice((1, 1, 2, 50))


def _write_token(content: bytearray, rng: random.Random) -> None:
    token, place = rng.choice(TOKENS), rng.randrange(len(content) + 1)
    content[place : place + rng.choice((0, 0, len(token)))] = token


def _write_number(content: bytearray, rng: random.Random) -> None:
    """Writes a size or an offset in binary."""
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
    place = rng.randrange(max(len(content), 1))
    number = rng.choice((0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, len(content)))
    content[place : place + width] = (number % 256**width).to_bytes(width, order)


def _stretch(content: bytearray, rng: random.Random) -> tuple[int, int]:
    return rng.randrange(len(content) + 1), min(int(rng.expovariate(1 / 12)) + 1, 200)


_remove, _insert = functools.partial(_replace, insert=False), functools.partial(_replace, remove=False)
_MUTATIONS = (_flip, _flip, _replace, _cut, _remove, _insert, _repeat, _write_token, _write_number)


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
