"""`aia vocab` builds vocabularies and refuses unusable input."""

import json
from pathlib import Path

import pytest

from aia_jax.cli.main import main
from aia_jax.data.vocabulary import Vocabulary


@pytest.fixture(autouse=True)
def captions(tmp_path, monkeypatch):
    """Two files of captions in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("The dog .\nA dog runs .\n")
    Path("dev.txt").write_text("the dog ran .\n")


def test_words_of_all_files_are_counted_together(capsys):
    assert main(["vocab", "train.txt", "dev.txt", "--output", "out/vocab.json", "--min_count", "2"]) == 0
    words = ["<pad>", "<start>", "<end>", "<unk>", "the", "dog", "."]
    assert json.loads(Path("out/vocab.json").read_text())["word2idx"] == {word: i for i, word in enumerate(words)}
    assert capsys.readouterr().out == (
        "7 words, the special ones included, cover 72.73% of 11 tokens in 3 captions\nwritten to out/vocab.json\n"
    )


def test_a_vocabulary_is_overwritten_only_with_force(failing):
    Path("vocab.json").write_text("mine")
    command = ["vocab", "train.txt", "--output", "vocab.json", "--min_count=1"]
    error = "error: vocab.json is there already; --force replaces it, --output names another place\n"
    assert failing(*command) == error
    assert Path("vocab.json").read_text() == "mine"
    assert main([*command, "--force"]) == 0
    assert len(Vocabulary.load("vocab.json")) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.txt"], "no word occurs 4 times; give more captions or a lower min_count"),
        (["train.txt", "--min_count=0"], "--min_count: must be at least 1, not 0"),
        (["none.txt"], "none.txt cannot be read: No such file or directory"),
        (["train.txt", "--output=.", "--force"], ". is a folder; name another --output"),
        (["dev.txt", "--output=./dev.txt", "--force"], "dev.txt is one of the files of captions; name another"),
        (["train.txt", "--output=dev.txt/vocab.json", "--min_count=1"], "--output dev.txt is a file; name a folder"),
    ],
)
def test_bad_input_is_refused(failing, arguments, message):
    error = failing("vocab", "--output", "vocab.json", *arguments)
    assert error.startswith("error: ")
    assert message in error
    assert sorted(path.name for path in Path().iterdir()) == ["dev.txt", "train.txt"]
