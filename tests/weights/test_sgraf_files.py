"""SGRAF's files: every form of them, strictness, and the way back."""

import argparse
import collections
import os

import numpy as np
import pytest

from aia_jax.training.model_arrays import flat_arrays, split_model
from aia_jax.utils.errors import InputError
from aia_jax.weights import name_map
from aia_jax.weights.torch_files import read_torch_file, write_torch_file
from aia_jax.weights.torch_state import identify_state
from tests.helpers.sgraf_files import SIZES, arrays_of, checkpoint_of, ours_of, random_sgraf
from tests.helpers.torch_oracles import torch

REASONINGS = ("sgr", "saf")
FORMS = {
    "zip": lambda checkpoint: checkpoint,
    "list": lambda checkpoint: checkpoint["model"],
    "tuple": lambda checkpoint: {"model": tuple(checkpoint["model"])},
    "dicts": lambda checkpoint: dict(zip(("image", "text", "similarity"), checkpoint["model"], strict=True)),
    "parallel": lambda checkpoint: {
        **checkpoint,
        "model": [{f"module.{name}": value for name, value in part.items()} for part in checkpoint["model"]],
    },
    "uncounted": lambda checkpoint: [  # before torch 0.4.1
        {name: value for name, value in part.items() if not name.endswith("num_batches_tracked")}
        for part in checkpoint["model"]
    ],
}


def convert(path, shapes):
    state, options = read_torch_file(path)
    torch_state = identify_state(state, path.name, options)
    return torch_state, name_map.from_torch(torch_state, shapes, path.name)


@pytest.fixture(params=REASONINGS)
def pair(request):
    """A torch model, its reasoning, and the shapes of our arrays."""
    theirs = random_sgraf(request.param)
    _, weights = split_model(ours_of(theirs, request.param))
    return theirs, request.param, {path: leaf.shape for path, leaf in flat_arrays(weights).items()}


def test_every_form_gives_the_same_arrays(pair, tmp_path):
    theirs, reasoning, shapes = pair
    checkpoint = checkpoint_of(theirs, reasoning)
    for form, change in FORMS.items():
        torch.save(change(checkpoint), tmp_path / f"{form}.pth.tar")
    torch.save(checkpoint, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    write_torch_file(tmp_path / "plain.safetensors", arrays_of(theirs))
    _, expected = convert(tmp_path / "zip.pth.tar", shapes)
    assert expected.keys() == shapes.keys()
    for path in sorted(tmp_path.iterdir()):
        torch_state, arrays = convert(path, shapes)
        assert (torch_state.system, torch_state.reasoning) == ("retrieval", reasoning)
        assert torch_state.describe() == f"an image-text retriever (SGRAF's {reasoning.upper()})"
        for name, value in expected.items():
            np.testing.assert_array_equal(arrays[name], value, err_msg=f"{path.name}: {name}")


@pytest.mark.parametrize("name", ["back.pth.tar", "back.safetensors"])
def test_there_and_back_is_bit_identical(pair, tmp_path, name):
    theirs, reasoning, shapes = pair
    torch.save(checkpoint_of(theirs, reasoning), tmp_path / "a.pth.tar")
    _, arrays = convert(tmp_path / "a.pth.tar", shapes)
    state = name_map.to_torch(arrays, system=name_map.system_of(arrays), family="sgraf")
    assert state.keys() == theirs.state_dict().keys()
    write_torch_file(tmp_path / name, state, beside={"epoch": 1, "opt": {"module_name": reasoning.upper()}})
    back, options = read_torch_file(tmp_path / name)
    assert options == (None if name.endswith("safetensors") else {"module_name": reasoning.upper()})
    for key, value in arrays_of(theirs).items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    _, again = convert(tmp_path / name, shapes)
    for key, value in arrays.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


def test_the_way_back_loads_as_three_state_dicts(pair, tmp_path):
    theirs, reasoning, _ = pair
    write_torch_file(tmp_path / "a.pth.tar", arrays_of(theirs), beside={"opt": {"sgr_step": 3}, "Eiters": 0})
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "a.pth.tar", weights_only=True)
    assert (content["opt"], content["Eiters"]) == (argparse.Namespace(sgr_step=3), 0)
    for encoder, state in zip(random_sgraf(reasoning, seed=1), content["model"], strict=True):
        encoder.load_state_dict(state, strict=True)


def test_every_problem_is_listed_with_the_nearest_names(pair, tmp_path):
    theirs, reasoning, shapes = pair
    checkpoint = checkpoint_of(theirs, reasoning)
    image, text, similarity = checkpoint["model"]
    image["fc.bais"] = image.pop("fc.bias")
    text["cap_rnn.weight_hh_l0"] = text["cap_rnn.weight_hh_l0"].T
    similarity["extra.weight"] = torch.ones(2)
    similarity["v_global_w.embedding_local.1.running_var"].fill_(-1)
    torch.save(checkpoint, tmp_path / "a.pth")
    with pytest.raises(InputError) as caught:
        convert(tmp_path / "a.pth", shapes)
    message, size = str(caught.value), SIZES["embed_size"]
    assert message.startswith("a.pth does not fit this config; it holds an image-text retriever")
    assert f"missing: 0.fc.bias [{size}]; nearest: 0.fc.bais" in message
    assert f"1.cap_rnn.weight_hh_l0: other shape: [{size}, {3 * size}] in the file, [{3 * size}, {size}]" in message
    assert "left over: 2.extra.weight" in message
    assert "2.v_global_w.embedding_local.1.running_var: variances below 0" in message
    assert message.count("\n") == 5


@pytest.mark.parametrize("gone", ["0.fc.weight", "1.cap_rnn.bias_hh_l0_reverse", "2.sim_eval_w.weight"])
def test_a_missing_array_is_named(pair, gone):
    theirs, _, shapes = pair
    state = {name: value for name, value in arrays_of(theirs).items() if name != gone}
    with pytest.raises(InputError, match=f"missing: {gone}"):
        name_map.from_torch(identify_state(state, "a.pth"), shapes, "a.pth")


@pytest.mark.parametrize(
    ("reasoning", "options", "message"),
    [
        ("saf", {"module_name": None}, "its opt lacks module_name, which says whether it is SGR or SAF"),
        ("saf", {"module_name": "GAT"}, "its opt says module_name='GAT'; known: SGR, SAF"),
        ("sgr", {"sgr_step": 4}, r"opt\.sgr_step=4; here it is always 3"),
        ("sgr", {"sgr_step": torch.ones(2)}, r"opt\.sgr_step=tensor"),
        ("saf", {"bi_gru": False}, r"opt\.bi_gru=False; here it is always True"),
        ("saf", {"num_layers": 2}, r"opt\.num_layers=2; here it is always 1"),
        ("saf", {"no_imgnorm": True, "no_txtnorm": True}, r"(?s)opt\.no_imgnorm=True; .*opt\.no_txtnorm=True; "),
    ],
)
def test_options_that_are_not_of_this_project_are_named(tmp_path, reasoning, options, message):
    torch.save(checkpoint_of(random_sgraf(reasoning), reasoning, **options), tmp_path / "a.pth.tar")
    with pytest.raises(InputError, match=message):
        identify_state(*_read(tmp_path / "a.pth.tar"))


def test_options_of_the_other_reasoning_do_not_matter(tmp_path):
    torch.save(checkpoint_of(random_sgraf("saf"), "saf", sgr_step=5), tmp_path / "a.pth.tar")
    assert identify_state(*_read(tmp_path / "a.pth.tar")).reasoning == "saf"


def test_options_that_contradict_the_arrays_are_refused(pair, tmp_path):
    theirs, reasoning, _ = pair
    other = {"sgr": "saf", "saf": "sgr"}[reasoning]
    _, weights = split_model(ours_of(random_sgraf(other), other))
    shapes = {path: leaf.shape for path, leaf in flat_arrays(weights).items()}
    torch.save(checkpoint_of(theirs, reasoning, module_name=other), tmp_path / "a.pth.tar")
    with pytest.raises(InputError, match=rf"(?s)missing: 2\.{other.upper()}_.*left over: 2\.{reasoning.upper()}_"):
        convert(tmp_path / "a.pth.tar", shapes)


def _read(path):
    state, options = read_torch_file(path)
    return state, path.name, options


def test_without_options_the_names_tell_or_nothing_does():
    both = arrays_of(random_sgraf("sgr")) | arrays_of(random_sgraf("saf"))
    neither = {name: value for name, value in both.items() if "_module" not in name}
    for state, found in ((both, "both"), (neither, "neither")):
        with pytest.raises(InputError, match=rf"one of 2\.SGR_module\.\* and 2\.SAF_module\.\*, found {found}"):
            identify_state(state, "a.pth")


class Malicious:
    """Unpickled carelessly it would create the file named by the class attribute."""

    marker = ""

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Options(argparse.Namespace):
    """Not what is allowed."""


@pytest.mark.parametrize("old", [False, True])
def test_code_among_the_options_is_refused_and_never_run(tmp_path, old):
    Malicious.marker = str(tmp_path / "marker")
    for opt in (argparse.Namespace(module_name=Malicious()), Options(module_name="SAF"), collections.UserDict()):
        checkpoint = {**checkpoint_of(random_sgraf("saf"), "saf"), "opt": opt}
        torch.save(checkpoint, tmp_path / "evil.pth.tar", _use_new_zipfile_serialization=not old)
        with pytest.raises(InputError, match=r"evil\.pth\.tar is refused: .*nothing in it was executed"):
            read_torch_file(tmp_path / "evil.pth.tar")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("old", [False, True])
def test_truncated_files_are_refused(tmp_path, kept, old):
    whole, cut = tmp_path / "whole.pth.tar", tmp_path / "cut.pth.tar"
    torch.save(checkpoint_of(random_sgraf("saf"), "saf"), whole, _use_new_zipfile_serialization=not old)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError, match=r"cut\.pth\.tar is (damaged|refused)"):
        read_torch_file(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": [{}, {}, {}]}, "holds no state dict but dict"),
        ({"model": [{"a": torch.ones(1)}] * 2}, r"holds what is no array: model \(list\)"),
        ({"model": [{"a": 1}, {}, {"b": "text"}]}, r"holds what is no array: 0\.a \(int\), 2\.b \(str\)"),
        ({"model": argparse.Namespace(a=1)}, r"holds what is no array: model \(Namespace\)"),
        (argparse.Namespace(detach=1), "holds no state dict but Namespace"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=message):
        read_torch_file(tmp_path / "a.pth")
