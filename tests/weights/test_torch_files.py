"""Files of torch and safetensors: read in all their forms, refused if damaged, and never executed."""

import argparse
import collections
import pickle
import sys
import zipfile

import numpy as np
import pytest

from aia_jax.utils.errors import InputError
from aia_jax.weights.torch_files import read_torch_file, write_torch_file
from tests.helpers.malicious import Malicious
from tests.helpers.torch_oracles import torch

ARRAYS = {"conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(7)}
ONE = torch.ones(1)
CIRCLE = {"epoch": 1}
CIRCLE["model"] = CIRCLE


class Options(argparse.Namespace):
    """A class that files may not load."""


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_written_file_can_be_read(tmp_path, suffix):
    path = tmp_path / "sub" / f"weights{suffix}"
    write_torch_file(path, ARRAYS)
    state, options = read_torch_file(path)
    assert (state.keys(), options) == (ARRAYS.keys(), None)
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(state[name], value)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_wrappers_and_prefixes_are_removed(tmp_path, wrapper, prefix):
    inner = {f"{prefix}{name}": torch.tensor(value) for name, value in ARRAYS.items()}
    torch.save({wrapper: inner, "epoch": 3} if wrapper else inner, tmp_path / "a.pth")
    assert read_torch_file(tmp_path / "a.pth")[0].keys() == ARRAYS.keys()


def test_half_precision_becomes_float32(tmp_path):
    from safetensors.torch import save_file

    values = {"a": torch.tensor([1.5], dtype=torch.bfloat16), "b": torch.tensor([0.25], dtype=torch.float16)}
    save_file(values, tmp_path / "a.safetensors")
    torch.save(values, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        state, _ = read_torch_file(tmp_path / name)
        found = {key: (value.dtype, value[0]) for key, value in state.items()}
        assert found == {"a": (np.float32, 1.5), "b": (np.float32, 0.25)}


def test_a_safetensors_file_with_another_suffix_is_read(tmp_path):
    write_torch_file(tmp_path / "a.safetensors", ARRAYS)
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert read_torch_file(tmp_path / "a.bin")[0].keys() == ARRAYS.keys()


def save_old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, save_old, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_file_is_refused_and_never_runs(tmp_path, save):
    payload = Malicious(tmp_path / "marker")
    for content in (
        {"conv1.weight": torch.ones(2), "payload": payload},
        {"model": [{"a": ONE}] * 3, "opt": argparse.Namespace(module_name=payload)},
        {"model": {"a": ONE}, "opt": Options(module_name="SAF")},
        {"model": {"a": ONE}, "opt": collections.UserDict()},
    ):
        save(content, tmp_path / "evil.pth")
        with pytest.raises(InputError, match=r"evil\.pth is refused: .*nothing in it was executed"):
            read_torch_file(tmp_path / "evil.pth")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": ONE, "epoch": 3}, r"a\.pth holds what is no array: epoch \(int\)"),
        ([1, 2], "holds no state dict but list"),
        ({}, "holds no state dict but dict"),
        ({"a": torch.tensor([1.0, float("nan")])}, r"holds NaN or infinity in 1 array\(s\), first in a"),
        ({"head.b": torch.zeros(1).expand(10**13)}, "holds what is no array: head.b"),
        ({"model": {"a": ONE}, "head.w": ONE}, "holds arrays beside its 'model': head"),
        ({"model": {"a": ONE}, "opt": collections.UserDict(x=1)}, r"it asks to load collections\.UserDict"),
        ({"model": [{}, {}, {}]}, "holds no state dict but dict"),
        ({"model": [{"a": ONE}] * 2}, r"holds what is no array: model \(list\)"),
        ({"model": [{"a": 1}, {}, {"b": "text"}]}, r"holds what is no array: 0\.a \(int\), 2\.b \(str\)"),
        ({"model": argparse.Namespace(a=1)}, r"holds what is no array: model \(Namespace\)"),
        (argparse.Namespace(detach=1), "holds no state dict but Namespace"),
        (CIRCLE, "holds what is no array"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=message):
        read_torch_file(tmp_path / "a.pth")


@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.95])
def test_truncated_files_and_texts_are_refused(tmp_path, form, kept):
    suffix = "safetensors" if form == "safetensors" else "pth"
    complete, cut = tmp_path / f"complete.{suffix}", tmp_path / f"cut.{suffix}"
    if form == "old":
        save_old({"model": [{"a": torch.ones(50, 50)}] * 3}, complete)
    else:
        write_torch_file(complete, {"a": np.ones((50, 50), np.float32)})
    data = complete.read_bytes()
    for content in (data[: int(kept * len(data))], b"hello world, this is no weights file"):
        cut.write_bytes(content)
        with pytest.raises(InputError, match=rf"cut\.{suffix} is (damaged|refused)"):
            read_torch_file(cut)


def test_archives_that_unpack_to_more_bytes_than_they_have_are_refused(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as bomb:
        for part in plain.infolist():
            bomb.writestr(part.filename, plain.read(part))
    assert torch.load(tmp_path / "bomb.pth", weights_only=True)["a"].shape == (100_000,)  # torch reads it
    with pytest.raises(InputError, match=r"bomb\.pth is refused: a file of [\d,]+ bytes that unpacks to 400,\d+"):
        read_torch_file(tmp_path / "bomb.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.pth is no file"):
        read_torch_file(tmp_path / "nothing.pth")


def test_without_torch_the_message_names_the_extra(tmp_path, monkeypatch):
    write_torch_file(tmp_path / "a.pth", ARRAYS)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"needs torch: pip install 'aia_jax\[convert\]'"):
        read_torch_file(tmp_path / "a.pth")
