"""SGRAF's files: all their forms, strict conversion in both directions, and their options."""

import argparse
import copy

import pytest

from aia_jax.training.model_arrays import flat_arrays, split_model
from aia_jax.utils.errors import InputError
from aia_jax.weights import name_map
from aia_jax.weights.torch_files import read_torch_file, write_torch_file
from aia_jax.weights.torch_state import identify_state
from tests.helpers.sgraf_files import SIZES, checkpoint_of, ours_of, random_sgraf
from tests.helpers.torch_oracles import arrays_of, assert_same_arrays, torch
from tests.helpers.torch_state_files import convert

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


def shapes_of(theirs, reasoning):
    """The shapes of our arrays for a torch model."""
    _, weights = split_model(ours_of(theirs, reasoning))
    return {path: leaf.shape for path, leaf in flat_arrays(weights).items()}


@pytest.fixture(scope="module", params=REASONINGS)
def pair(request):
    """A torch model, its reasoning, and the shapes of our arrays."""
    theirs = random_sgraf(request.param)
    return theirs, request.param, shapes_of(theirs, request.param)


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
        assert_same_arrays(arrays, expected)


@pytest.mark.parametrize("name", ["back.pth.tar", "back.safetensors"])
def test_conversion_in_both_directions_keeps_every_bit(pair, tmp_path, name):
    theirs, reasoning, shapes = pair
    torch.save(checkpoint_of(theirs, reasoning), tmp_path / "a.pth.tar")
    _, arrays = convert(tmp_path / "a.pth.tar", shapes)
    state = name_map.to_torch(arrays, system=name_map.system_of(arrays), family="sgraf")
    write_torch_file(tmp_path / name, state, beside={"epoch": 1, "opt": {"module_name": reasoning.upper()}})
    back, options = read_torch_file(tmp_path / name)
    assert options == (None if name.endswith("safetensors") else {"module_name": reasoning.upper()})
    assert_same_arrays(back, arrays_of(theirs))
    assert_same_arrays(convert(tmp_path / name, shapes)[1], arrays)


def test_a_written_checkpoint_loads_as_three_state_dicts(pair, tmp_path):
    theirs, reasoning, _ = pair
    write_torch_file(tmp_path / "a.pth.tar", arrays_of(theirs), beside={"opt": {"sgr_step": 3}, "Eiters": 0})
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "a.pth.tar", weights_only=True)
    assert (content["opt"], content["Eiters"]) == (argparse.Namespace(sgr_step=3), 0)
    for encoder, state in zip(random_sgraf(reasoning, seed=1), content["model"], strict=True):
        encoder.load_state_dict(state, strict=True)


def test_every_problem_is_listed_with_the_nearest_names(pair, tmp_path):
    theirs, reasoning, shapes = pair
    checkpoint = checkpoint_of(copy.deepcopy(theirs), reasoning)
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


def identify(reasoning, **options):
    theirs = random_sgraf(reasoning)
    return identify_state(arrays_of(theirs), "a.pth", vars(checkpoint_of(theirs, reasoning, **options)["opt"]))


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
def test_unsupported_options_are_named(reasoning, options, message):
    with pytest.raises(InputError, match=message):
        identify(reasoning, **options)


def test_options_of_the_other_reasoning_are_ignored():
    assert identify("saf", sgr_step=5).reasoning == "saf"


def test_options_that_contradict_the_arrays_are_refused(pair, tmp_path):
    theirs, reasoning, _ = pair
    other = {"sgr": "saf", "saf": "sgr"}[reasoning]
    torch.save(checkpoint_of(theirs, reasoning, module_name=other), tmp_path / "a.pth.tar")
    with pytest.raises(InputError, match=rf"(?s)missing: 2\.{other.upper()}_.*left over: 2\.{reasoning.upper()}_"):
        convert(tmp_path / "a.pth.tar", shapes_of(random_sgraf(other), other))


def test_without_options_the_array_names_must_decide():
    both = arrays_of(random_sgraf("sgr")) | arrays_of(random_sgraf("saf"))
    neither = {name: value for name, value in both.items() if "_module" not in name}
    for state, found in ((both, "both"), (neither, "neither")):
        with pytest.raises(InputError, match=rf"one of 2\.SGR_module\.\* and 2\.SAF_module\.\*, found {found}"):
            identify_state(state, "a.pth")
