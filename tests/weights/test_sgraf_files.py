"""SGRAF's files: all their forms, strict conversion in both directions, and their options."""

import argparse

import numpy as np
import pytest

from aia_jax.utils.errors import InputError
from aia_jax.weights import name_map
from aia_jax.weights.torch_archive import write_archive
from aia_jax.weights.torch_files import read_torch_file, write_torch_file
from aia_jax.weights.torch_state import identify_state
from tests.helpers.references import needs_torch, reference, relative_error, shapes_of
from tests.helpers.sgraf_files import SIZES, builder, checkpoint_of, random_sgraf, torch_sgraf
from tests.helpers.torch_save import WRITERS
from tests.helpers.torch_state_files import assert_same_arrays, convert, digest

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
    "without counters": lambda checkpoint: [  # before torch 0.4.1
        {name: value for name, value in part.items() if not name.endswith("num_batches_tracked")}
        for part in checkpoint["model"]
    ],
}


@pytest.fixture(params=REASONINGS)
def model(request):
    """A state dict, its reasoning, and the shapes of our arrays."""
    return random_sgraf(request.param), request.param, shapes_of(builder(request.param))


@pytest.mark.parametrize("to_bytes", WRITERS)
def test_every_form_gives_the_same_arrays(model, tmp_path, to_bytes):
    state, reasoning, shapes = model
    for form, change in FORMS.items():
        (tmp_path / f"{form}.pth.tar").write_bytes(to_bytes(change(checkpoint_of(state, reasoning))))
    write_torch_file(tmp_path / "plain.safetensors", state)
    expected = name_map.from_torch(identify_state(state, "the state"), shapes, "the state")
    assert expected.keys() == shapes.keys()
    for path in sorted(tmp_path.iterdir()):
        torch_state, arrays = convert(path, shapes)
        assert (torch_state.system, torch_state.reasoning) == ("retrieval", reasoning)
        assert torch_state.describe() == f"an image-text retriever (SGRAF's {reasoning.upper()})"
        assert_same_arrays(arrays, expected)


@pytest.mark.parametrize("name", ["back.pth.tar", "back.safetensors"])
def test_conversion_in_both_directions_keeps_every_bit(model, tmp_path, name):
    state, reasoning, shapes = model
    write_archive(tmp_path / "a.pth.tar", checkpoint_of(state, reasoning))
    _, arrays = convert(tmp_path / "a.pth.tar", shapes)
    written = name_map.to_torch(arrays, system=name_map.system_of(arrays), family="sgraf")
    write_torch_file(tmp_path / name, written, beside={"epoch": 1, "opt": {"module_name": reasoning.upper()}})
    back, options, _ = read_torch_file(tmp_path / name)
    assert options == (None if name.endswith("safetensors") else {"module_name": reasoning.upper()})
    assert_same_arrays(back, state)
    assert_same_arrays(convert(tmp_path / name, shapes)[1], arrays)


def test_names_and_shapes_are_those_of_torch(model):
    state, reasoning, _ = model

    def compute():
        from tests.helpers.torch_oracles import arrays_of

        return {"digest": digest(arrays_of(torch_sgraf(state, reasoning)))}

    assert relative_error(digest(state), reference(f"names/{reasoning}", compute)["digest"]) == 0


@needs_torch
def test_a_written_checkpoint_loads_as_three_state_dicts(model, tmp_path):
    import torch

    state, reasoning, _ = model
    write_torch_file(tmp_path / "a.pth.tar", state, beside={"opt": {"sgr_step": 3}, "Eiters": 0})
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "a.pth.tar", weights_only=True)
    assert (content["opt"], content["Eiters"]) == (argparse.Namespace(sgr_step=3), 0)
    theirs = torch_sgraf(random_sgraf(reasoning, seed=1), reasoning)
    for encoder, loaded in zip(theirs, content["model"], strict=True):
        encoder.load_state_dict(loaded, strict=True)


def test_every_problem_is_listed_with_the_nearest_names(model, tmp_path):
    state, reasoning, shapes = model
    checkpoint = checkpoint_of(state, reasoning)
    image, text, similarity = checkpoint["model"]
    image["fc.bais"] = image.pop("fc.bias")
    text["cap_rnn.weight_hh_l0"] = text["cap_rnn.weight_hh_l0"].T
    similarity["extra.weight"] = np.ones(2)
    similarity["v_global_w.embedding_local.1.running_var"].fill(-1)
    write_archive(tmp_path / "a.pth", checkpoint)
    with pytest.raises(InputError) as caught:
        convert(tmp_path / "a.pth", shapes)
    message, size = str(caught.value), SIZES["embed_size"]
    assert message.startswith("a.pth does not fit this config; it holds an image-text retriever")
    assert f"missing: 0.fc.bias [{size}]; nearest: 0.fc.bais" in message
    assert f"1.cap_rnn.weight_hh_l0: other shape: [{size}, {3 * size}] in the file, [{3 * size}, {size}]" in message
    assert "left over: 2.extra.weight" in message
    assert "2.v_global_w.embedding_local.1.running_var: variances below 0" in message
    assert message.count("\n") == 5


def identify(reasoning, **options):
    state = random_sgraf(reasoning)
    return identify_state(state, "a.pth", vars(checkpoint_of(state, reasoning, **options)["opt"]))


@pytest.mark.parametrize(
    ("reasoning", "options", "message"),
    [
        ("saf", {"module_name": None}, "its opt lacks module_name, which says whether it is SGR or SAF"),
        ("saf", {"module_name": "GAT"}, "its opt says module_name='GAT'; known: SGR, SAF"),
        ("sgr", {"sgr_step": 4}, r"opt\.sgr_step=4; here it is always 3"),
        ("sgr", {"sgr_step": np.ones(2)}, r"opt\.sgr_step=\(ndarray\)"),
        ("saf", {"module_name": ("SAF",)}, r"its opt says module_name=\(tuple\)"),
        ("saf", {"bi_gru": False}, r"opt\.bi_gru=False; here it is always True"),
        ("saf", {"num_layers": 2}, r"opt\.num_layers=2; here it is always 1"),
        ("saf", {"no_imgnorm": True, "no_txtnorm": True}, r"(?s)opt\.no_imgnorm=True; .*opt\.no_txtnorm=True; "),
    ],
)
def test_unsupported_options_are_named(reasoning, options, message):
    with pytest.raises(InputError, match=message):
        identify(reasoning, **options)


def test_options_of_the_other_reasoning_are_ignored():
    assert identify("saf", sgr_step=5).reasoning == "saf"


def test_options_that_contradict_the_arrays_are_refused(model, tmp_path):
    state, reasoning, _ = model
    other = {"sgr": "saf", "saf": "sgr"}[reasoning]
    write_archive(tmp_path / "a.pth.tar", checkpoint_of(state, reasoning, module_name=other))
    with pytest.raises(InputError, match=rf"(?s)missing: 2\.{other.upper()}_.*left over: 2\.{reasoning.upper()}_"):
        convert(tmp_path / "a.pth.tar", shapes_of(builder(other)))


def test_without_options_the_array_names_must_decide():
    both = random_sgraf("sgr") | random_sgraf("saf")
    neither = {name: value for name, value in both.items() if "_module" not in name}
    for state, found in ((both, "both"), (neither, "neither")):
        with pytest.raises(InputError, match=rf"one of 2\.SGR_module\.\* and 2\.SAF_module\.\*, found {found}"):
            identify_state(state, "a.pth")
