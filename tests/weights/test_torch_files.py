import argparse
import collections
import os
import pickle
import zipfile

import numpy as np
import pytest

from aia_jax.utils.errors import InputError
from aia_jax.weights.torch_files import read_torch_file, write_torch_file
from tests.helpers.torch_oracles import torch

ARRAYS = {"conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(7)}


class Malicious:
    """Unpickled carelessly it would create the file named by the class attribute."""

    marker = ""

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def malicious(tmp_path):
    Malicious.marker = str(tmp_path / "marker")
    return Malicious()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_written_is_read(tmp_path, suffix):
    path = tmp_path / "sub" / f"weights{suffix}"
    write_torch_file(path, ARRAYS)
    state = read_torch_file(path)[0]
    assert state.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(state[name], value)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("wrap", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_wrappings_are_taken_off(tmp_path, wrap, prefix):
    inner = {f"{prefix}{name}": torch.tensor(value) for name, value in ARRAYS.items()}
    torch.save({wrap: inner, "epoch": 3} if wrap else inner, tmp_path / "a.pth")
    assert read_torch_file(tmp_path / "a.pth")[0].keys() == ARRAYS.keys()


def test_half_precision_becomes_float32(tmp_path):
    from safetensors.torch import save_file

    values = {"a": torch.tensor([1.5], dtype=torch.bfloat16), "b": torch.tensor([0.25], dtype=torch.float16)}
    save_file(values, tmp_path / "a.safetensors")
    torch.save(values, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        state = read_torch_file(tmp_path / name)[0]
        assert {key: (value.dtype, value[0]) for key, value in state.items()} == {
            "a": (np.float32, 1.5),
            "b": (np.float32, 0.25),
        }


def test_the_old_format_of_torch_is_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read_torch_file(tmp_path / "a.pth")[0]["a"], [1, 1])


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, malicious, save):
    path = tmp_path / "evil.pth"
    save({"conv1.weight": torch.ones(2), "payload": malicious}, path)
    with pytest.raises(InputError, match=r"evil\.pth is refused: .*nothing in it was executed"):
        read_torch_file(path)
    assert not os.path.exists(Malicious.marker)


def test_a_refused_class_is_named(tmp_path):
    torch.save({"model": {"a": torch.ones(1)}, "opt": collections.UserDict(x=1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"it asks to load collections\.UserDict"):
        read_torch_file(tmp_path / "a.pth")


def test_options_may_lie_beside_the_arrays(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "opt": argparse.Namespace(x=1)}, tmp_path / "a.pth")
    state, options = read_torch_file(tmp_path / "a.pth")
    assert (list(state), options) == (["a"], {"x": 1})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.95])
def test_truncated_files_are_refused(tmp_path, suffix, kept):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    write_torch_file(whole, {"a": np.ones((50, 50), np.float32)})
    data = whole.read_bytes()
    cut.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError, match=rf"cut\{suffix} is (damaged|refused)"):
        read_torch_file(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(1), "epoch": 3}, r"holds what is no array: epoch \(int\)"),
        ([1, 2], "holds no state dict but list"),
        ({}, "holds no state dict but dict"),
        ({"a": torch.tensor([1.0, float("nan")])}, r"holds NaN or infinity in 1 array\(s\), first in a"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=message):
        read_torch_file(tmp_path / "a.pth")


def test_a_safetensors_file_of_another_name_is_read(tmp_path):
    write_torch_file(tmp_path / "a.safetensors", ARRAYS)
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert read_torch_file(tmp_path / "a.bin")[0].keys() == ARRAYS.keys()


def test_odd_content_neither_hangs_nor_fills_the_memory(tmp_path):
    circle = {"model": {}, "epoch": 1}
    circle["model"] = circle
    torch.save(circle, tmp_path / "circle.pth")
    with pytest.raises(InputError, match=r"circle\.pth holds what is no array"):
        read_torch_file(tmp_path / "circle.pth")
    torch.save({"head.b": torch.zeros(1).expand(10**13)}, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match=r"bomb\.pth holds what is no array: head\.b"):
        read_torch_file(tmp_path / "bomb.pth")


def test_archives_that_unpack_to_more_than_they_hold_are_refused(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as bomb:
        for part in whole.infolist():
            bomb.writestr(part.filename, whole.read(part))
    assert torch.load(tmp_path / "bomb.pth", weights_only=True)["a"].shape == (100_000,)  # torch would
    with pytest.raises(InputError, match=r"bomb\.pth is refused: a file of [\d,]+ bytes that unpacks to 400,\d+"):
        read_torch_file(tmp_path / "bomb.pth")


def test_arrays_beside_the_wrapped_ones_are_not_lost(tmp_path):
    torch.save({"model": {"a": torch.ones(1)}, "head.w": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds arrays beside its 'model': head"):
        read_torch_file(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_text_is_refused(tmp_path, name):
    (tmp_path / name).write_text("hello world, this is no weights file")
    with pytest.raises(InputError, match=rf"{name} is (damaged|refused)"):
        read_torch_file(tmp_path / name)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.pth is no file"):
        read_torch_file(tmp_path / "nothing.pth")


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    write_torch_file(path, ARRAYS)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(InputError, match=r"needs torch: pip install 'aia_jax\[convert\]'"):
        read_torch_file(path)
