"""Files of torch and safetensors: read in all their forms, refused if damaged, and never executed."""

import argparse
import collections
import io
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from aia_jax.utils.errors import InputError
from aia_jax.weights.torch_files import read_torch_file, write_torch_file
from tests.helpers.malicious import Malicious
from tests.helpers.references import HAS_TORCH
from tests.helpers.torch_save import WRITERS, ZIP_WRITERS, torch_bytes

ARRAYS = {"conv_stem.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(7)}
ONE = np.ones(1, np.float32)
MANY = np.ndarray(10**13, np.float32, np.zeros(1, np.float32), strides=(0,))
CIRCLE = {"epoch": 1}
CIRCLE["model"] = CIRCLE


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_written_file_can_be_read(tmp_path, suffix):
    path = tmp_path / "sub" / f"weights{suffix}"
    write_torch_file(path, ARRAYS)
    state, options, _ = read_torch_file(path)
    assert (state.keys(), options) == (ARRAYS.keys(), None)
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(state[name], value, strict=True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
@pytest.mark.parametrize("to_bytes", WRITERS)
def test_wrappers_and_prefixes_are_removed(tmp_path, to_bytes, wrapper):
    for prefix in ("", "module.", "module.module."):
        inner = {f"{prefix}{name}": value for name, value in ARRAYS.items()}
        (tmp_path / "a.pth").write_bytes(to_bytes({wrapper: inner, "epoch": 3} if wrapper else inner))
        state, *_ = read_torch_file(tmp_path / "a.pth")
        assert state.keys() == ARRAYS.keys()
        for name, value in ARRAYS.items():
            np.testing.assert_array_equal(state[name], value, strict=True)


@pytest.mark.parametrize("to_bytes", WRITERS)
def test_half_precision_becomes_float32(tmp_path, to_bytes):
    values = {"a": np.array([1.5], ml_dtypes.bfloat16), "b": np.array([0.25], np.float16)}
    write_torch_file(tmp_path / "a.safetensors", values)
    (tmp_path / "a.pth").write_bytes(to_bytes(values))
    for name in ("a.safetensors", "a.pth"):
        state, *_ = read_torch_file(tmp_path / name)
        found = {key: (value.dtype, value[0]) for key, value in state.items()}
        assert found == {"a": (np.float32, 1.5), "b": (np.float32, 0.25)}


def test_a_safetensors_file_with_another_suffix_is_read(tmp_path):
    write_torch_file(tmp_path / "a.safetensors", ARRAYS)
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert read_torch_file(tmp_path / "a.bin")[0].keys() == ARRAYS.keys()


@pytest.mark.parametrize("to_bytes", [*WRITERS, pickle.dumps])
def test_code_in_a_file_is_refused_and_never_runs(tmp_path, to_bytes):
    payload = Malicious(tmp_path / "marker")
    for content in (
        {"conv1.weight": ONE, "payload": payload},
        {"model": [{"a": ONE}] * 3, "opt": argparse.Namespace(module_name=payload)},
    ):
        (tmp_path / "evil.pth").write_bytes(to_bytes(content))
        with pytest.raises(InputError, match=r"evil\.pth is refused: .*nothing in it was executed"):
            read_torch_file(tmp_path / "evil.pth")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("to_bytes", ZIP_WRITERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({("a", "b"): ONE}, "holds no state dict with arrays"),
        ({"epoch": 3}, "holds no state dict with arrays"),
        ([1, 2], "holds no state dict but list"),
        ({}, "holds no state dict with arrays"),
        ({"a": np.float32([1, np.nan])}, r"holds NaN or infinity in 1 array\(s\), first in a"),
        ({"\x1b[2J": MANY}, "its arrays share memory and have 40,000,000,000,000 bytes in all"),
        ({"opt": collections.UserDict(x=1)}, r"holds no state dict but UserDict\.IterableUserDict"),
        ({"model": [{}, {}, {}]}, "holds no state dict with arrays"),
        ({"model": [{"a": 1}, {}, {"b": "text"}]}, "holds no state dict with arrays"),
        ({"model": argparse.Namespace(a=1)}, "holds no state dict with arrays"),
        (argparse.Namespace(detach=1), "holds no state dict but Namespace"),
    ],
)
def test_other_content_is_refused(tmp_path, to_bytes, content, message):
    (tmp_path / "a.pth").write_bytes(to_bytes(content))
    with pytest.raises(InputError, match=message):
        read_torch_file(tmp_path / "a.pth")


def test_a_dict_in_itself_is_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(torch_bytes(CIRCLE))
    with pytest.raises(InputError, match="holds no state dict with arrays"):
        read_torch_file(tmp_path / "a.pth")


@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.95])
def test_truncated_files_and_texts_are_refused(tmp_path, form, kept):
    suffix = "safetensors" if form == "safetensors" else "pth"
    complete, cut = tmp_path / f"complete.{suffix}", tmp_path / f"cut.{suffix}"
    if form == "old":
        complete.write_bytes(torch_bytes({"model": [{"a": np.ones((50, 50), np.float32)}] * 3}, old=True))
    else:
        write_torch_file(complete, {"a": np.ones((50, 50), np.float32)})
    data = complete.read_bytes()
    for content, found in (
        (data[: int(kept * len(data))], "(damaged|refused)"),
        (b"hello world, this is no weights file", "a text file"),
    ):
        cut.write_bytes(content)
        with pytest.raises(InputError, match=rf"cut\.{suffix} is {found}"):
            read_torch_file(cut)


def test_archives_that_unpack_to_more_bytes_than_they_have_are_refused(tmp_path):
    plain = zipfile.ZipFile(io.BytesIO(torch_bytes({"a": np.zeros(100_000, np.float32)})))
    with plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for part in plain.infolist():
            bomb.writestr(part.filename, plain.read(part))
    if HAS_TORCH:
        import torch

        assert torch.load(tmp_path / "bomb.pth", weights_only=True)["a"].shape == (100_000,)
    with pytest.raises(InputError, match=r"bomb\.pth is refused: a file of [\d,]+ bytes that unpacks to 400,\d+"):
        read_torch_file(tmp_path / "bomb.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.pth is no file"):
        read_torch_file(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"metadata": {}, "weight_map": {"a": "a-1-of-2.bin"}}',
            "a text file, such as the index of other files",
        ),
        ("name: a\n", "a text file"),
    ],
)
def test_text_files_are_named(tmp_path, text, message):
    (tmp_path / "a.pth").write_text(text)
    with pytest.raises(InputError, match=message):
        read_torch_file(tmp_path / "a.pth")
