import re

import pytest

from aia_jax.data.words.label_texts import everyday_labels, read_label_texts
from aia_jax.tasks.text_encoder import TextEncoder
from aia_jax.utils.errors import InputError
from tests.helpers.text_model import needs_text_model

# Words about people that a label of a photo must not claim.
SENSITIVE = (
    "african|arab|asian|black person|buddhist|chinese|christian|disabled|ethnic|fat|gay|hindu|homeless|immigrant|"
    "indian|jew|jewish|lesbian|muslim|naked|nude|obese|patient|poor|race of people|refugee|sexy|slave|ugly|white person"
)


def test_the_everyday_vocabulary_has_plain_and_different_names():
    names, texts = everyday_labels()
    assert 700 <= len(names) == len(set(names)) == len(texts)
    for name, text in zip(names, texts, strict=True):
        assert re.fullmatch(r"[a-z][a-z' -]*[a-z]", name), name
        assert re.fullmatch(r"[A-Za-z0-9 ',:-]+", text), text
        assert text == name or text.startswith(f"{name}: ")


def test_the_everyday_vocabulary_says_nothing_sensitive_about_people():
    found = [name for name in everyday_labels().names if re.search(rf"\b({SENSITIVE})s?\b", name)]
    assert not found


def test_a_definition_is_part_of_the_text_but_not_of_the_name(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("cat\ncrane: a wading bird\ncrane (machine): lifts loads: heavy,large ones\ntench, Tinca tinca\n")
    names, texts = read_label_texts(path)
    assert names == ("cat", "crane", "crane (machine)", "tench, Tinca tinca")
    assert texts == ("cat", "crane: a wading bird", "crane (machine): lifts loads: heavy,large ones", names[3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("crane: a bird\ncrane: a machine\n", "repeats the name 'crane' of labels\\[0\\]"),
        ("cat\ncat\n", "repeats labels\\[0\\]"),
        (" : a bird\n", "has no name"),
        ("label,definition\ndog,animal\n", "'label,definition' is like a row of a table; write a label as `name` or"),
        ("dog:animal\n", "with a space after each comma, semicolon and colon"),
        ('"dog"\n', "without quotes"),
        ("dog\tanimal\n", "is like a row"),
        ("dog:\n", "is like a row"),
        ("dog " * 60, "the name of labels\\[0\\] 'dog dog .* is longer than 200 characters"),
        ("# dog\n", "holds no labels"),
        ("\n", "holds no labels"),
    ],
)
def test_files_without_different_names_are_refused(tmp_path, content, message):
    path = tmp_path / "words.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_label_texts(path)


@needs_text_model
def test_the_everyday_vocabulary_has_only_known_word_pieces():
    tokenizer = TextEncoder().tokenizer
    texts = everyday_labels().texts
    assert tokenizer.check_words(texts, "label") == []
    unknown = tokenizer.encode(["😀"]).ids[0][1]
    assert not any(unknown in ids for ids in tokenizer.encode(texts).ids)
