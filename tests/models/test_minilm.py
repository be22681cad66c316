"""MiniLM against BERT of transformers with the published weights."""

import importlib

import numpy as np
import pytest

from aia_jax.weights.minilm import minilm_files
from tests.helpers.references import largest_error, reference, relative_error
from tests.helpers.text_model import encode, needs_text_model, tokenizer

pytestmark = needs_text_model
TEXTS = {
    "word": "tree",
    "name": "horned owl",
    "sentence": "A man in a red shirt rides a bicycle down a snowy street while two children watch.",
    "long": "the quick brown fox jumps over lazy dogs near water " * 30,
    "chinese": "一只狗在雪地里 runs",
    "emoji": "a happy dog 😀🐕",
    "accents": "Crème brûlée, naïve façade; ÜBER-straße!",
    "markup": "<b>dog</b> &amp; cat\n\t\x00[MASK] [SEP] http://example.org/?q=1",
    "empty": "",
}


def _theirs(text: str) -> dict[str, np.ndarray]:
    """The ids, the last layer and the vector of a text, as in sentence-transformers."""
    from tests.helpers.torch_oracles import torch  # first, because it makes torchvision importable

    transformers = importlib.import_module("transformers")
    folder = minilm_files()[0].parent
    model = transformers.AutoModel.from_pretrained(folder).eval()
    split = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = split([text], truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        tokens = model(**inputs).last_hidden_state
    sentence = torch.nn.functional.normalize(tokens.mean(dim=1))
    return {"ids": inputs["input_ids"][0], "tokens": tokens[0], "sentence": sentence[0]}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_encoded_as_by_the_original(name):
    text = TEXTS[name]

    def compute(*keys):
        arrays = _theirs(text)
        return {key: arrays[key] for key in keys}

    ids = reference(f"minilm/{name}-ids", lambda: compute("ids"), "transformers")["ids"]
    theirs = reference(f"minilm/{name}", lambda: compute("tokens", "sentence"), "transformers")
    pieces = tokenizer().encode([text])
    assert largest_error(pieces.ids[0], ids) == 0
    assert pieces.truncated.tolist() == [name == "long"]
    sentence, tokens = encode([text])
    assert largest_error(sentence[0], theirs["sentence"]) <= 1e-6
    assert relative_error(tokens[0], theirs["tokens"]) <= 1e-5


def test_a_text_alone_equals_the_text_in_a_longer_batch():
    texts = list(TEXTS.values())
    sentences, tokens = encode(texts, padding=5)
    for number, text in enumerate(texts):
        sentence, own = encode([text])
        np.testing.assert_allclose(sentences[number], sentence[0], atol=1e-6)
        np.testing.assert_allclose(tokens[number, : own.shape[1]], own[0], atol=1e-5)
        assert not tokens[number, own.shape[1] :].any()


def test_related_texts_are_nearer_than_others():
    (dog, puppy, aeroplane), _ = encode(["a dog", "a puppy plays in the garden", "an aeroplane"])
    assert dog @ puppy > dog @ aeroplane + 0.2
