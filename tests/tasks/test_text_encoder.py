import numpy as np
import pytest

from aia_jax.tasks import text_encoder
from aia_jax.tasks.text_encoder import TextEncoder
from aia_jax.utils.errors import InputError
from tests.helpers.text_model import encode, needs_text_model

pytestmark = needs_text_model
TEXTS = ["a dog", "", "a man rides a bicycle in the snow 😀 with two dogs", "tree", "a dog", "a cat " * 200]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder()


def test_texts_of_all_lengths_have_the_outputs_of_the_model(encoder):
    sentences, tokens = encode(TEXTS)
    found, outputs = encoder.encode(TEXTS), encoder.encode_tokens(TEXTS)
    assert outputs.lengths.tolist() == [4, 2, 14, 3, 4, 256]
    np.testing.assert_allclose(found["sentence"], sentences, atol=1e-6)
    maxima = [rows[:length].max(axis=0) for rows, length in zip(tokens, outputs.lengths, strict=True)]
    np.testing.assert_allclose(found["token_max"], maxima, atol=1e-5)
    np.testing.assert_allclose(outputs.padded(np.arange(6)), tokens, atol=4e-3)  # float16
    chosen = outputs[np.array([5, 2, 0])]
    np.testing.assert_array_equal(chosen.padded(np.array([1, 2]), 5), outputs.padded(np.array([2, 0]))[:, :5])
    assert found["sentence"].dtype == found["token_max"].dtype == np.float32


def test_equal_texts_are_encoded_once_and_batches_have_few_shapes(encoder, monkeypatch):
    shapes = []

    def step(weights, tokens, lengths):
        shapes.append(tokens.shape)
        sums = np.repeat(tokens.sum(axis=1, keepdims=True), 384, axis=1)  # these differ between the texts
        return {"sentence": sums, "token_max": -sums}

    monkeypatch.setitem(encoder.__dict__, "_model", (step, None))
    texts = [f"{text} {number}" for number in range(300) for text in ("dog", "a photo of one large brown horse")]
    found = encoder.encode([*texts, "a long " * 10, *texts])
    assert shapes == [(128, 8)] * 3 + [(64, 16)] * 5 + [(1, 24)]
    sums = [ids.sum() for ids in encoder.tokenizer.encode(texts).ids]
    np.testing.assert_array_equal(found["sentence"][:600, 0], sums)
    np.testing.assert_array_equal(found["token_max"][601:, 0], np.negative(sums))


def test_results_for_long_lists_are_read_from_disk(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(text_encoder, "_CACHED_FROM", 5)
    first = TextEncoder(str(tmp_path))
    found, outputs = first.encode(TEXTS), first.encode_tokens(TEXTS)
    for name, array in encoder.encode(TEXTS[:4]).items():
        np.testing.assert_allclose(found[name][:4], array, atol=1e-5)

    def read(path):
        raise AssertionError("the weights are not needed")

    monkeypatch.setattr(text_encoder, "read_minilm", read)
    again = TextEncoder(str(tmp_path))
    for name, array in again.encode(TEXTS * 2).items():
        np.testing.assert_array_equal(array, np.concatenate([found[name]] * 2))
    everything = np.arange(len(TEXTS))
    np.testing.assert_array_equal(again.encode_tokens(TEXTS).padded(everything), outputs.padded(everything))
    with pytest.raises(AssertionError, match="not needed"):
        again.encode([*TEXTS, "another text"])
    again.digest = "other"
    with pytest.raises(AssertionError, match="not needed"):
        again.encode(TEXTS)


def test_no_texts_and_half_of_a_character(encoder):
    assert encoder.encode([])["sentence"].shape == (0, 384)
    assert encoder.encode_tokens([]).padded(np.arange(0)).shape == (0, 0, 384)
    with pytest.raises(InputError, match="half of a character"):
        encoder.encode(["a\ud800"])


def test_the_digest_identifies_the_files(encoder, monkeypatch, tmp_path):
    rules, _ = text_encoder.minilm_files()
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"other")
    monkeypatch.setattr(text_encoder, "minilm_files", lambda: (rules, other))
    assert TextEncoder().digest != encoder.digest
    assert len(encoder.digest) == 12
