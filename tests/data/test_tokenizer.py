import sys

import numpy as np
import pytest

from aia_jax.data.tokenizer import MAX_TOKENS, Tokenizer
from aia_jax.utils.errors import InputError
from tests.helpers.text_model import needs_text_model, tokenizer


@needs_text_model
def test_texts_become_ids_without_padding():
    ids, truncated = tokenizer().encode(["A dog", "a dog in the snow", ""])
    assert [list(row) for row in ids] == [[101, 1037, 3899, 102], [101, 1037, 3899, 1999, 1996, 4586, 102], [101, 102]]
    assert not truncated.any()
    assert tokenizer().encode([]).ids == []


@needs_text_model
def test_a_long_text_keeps_its_first_word_pieces():
    ids, truncated = tokenizer().encode(["dog " * 254, "dog " * 255, "cat"])
    assert [len(row) for row in ids] == [MAX_TOKENS, MAX_TOKENS, 3]
    assert truncated.tolist() == [False, True, False]
    np.testing.assert_array_equal(ids[0], ids[1])


@needs_text_model
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the label '' is empty; give English words"),
        (" \n", r"the label ' \\n' is empty"),
        ("\x07\ufffd", "has no word"),
        ("😀", "the label '😀' has no known word"),
        ("狗 🐕", "has no known word"),
        ("[UNK]", "has no known word"),
        ("x" * 101, "has no known word"),
        ("собака в снегу", "has no known word"),
        ("小狗 !!!", "has no known word"),
        ("...", "has no known word"),
    ],
)
def test_a_text_without_a_known_word_is_no_label(text, problem):
    texts = ["dog", "a 😀", "<i>", "dog собака", "7", "Café", long := "dog " * 300]
    assert tokenizer().check_words(texts, "label") == [long]
    with pytest.raises(InputError, match=problem):
        tokenizer().check_words([*texts, text], "label")


@needs_text_model
def test_half_of_a_character_is_no_text():
    with pytest.raises(InputError, match=r"'a\\ud800' is not a text: it contains half of a character"):
        tokenizer().encode(["dog", "a\ud800"])


def test_a_missing_package_and_a_damaged_file_are_named(tmp_path, monkeypatch):
    file = tmp_path / "tokenizer.json"
    file.write_text('{"version": "1.0"')
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(InputError, match=r"encoding texts needs more packages .*pip install"):
            Tokenizer(file)
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install tokenizers")
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read as tokenizer\.json: EOF"):
        Tokenizer(file)
    with pytest.raises(InputError, match="No such file"):
        Tokenizer(tmp_path / "absent.json")
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(file))
    with pytest.raises(InputError, match=r"is no tokenizer of BERT: it lacks \[CLS\]"):
        Tokenizer(file)
