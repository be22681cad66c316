"""Damaged text and JSON: thresholds, results, keywords, captions, vocabularies, word vectors, lists of photos."""

import json
import random
import re
import unicodedata
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np

from aia_jax.cli.main import main
from aia_jax.cli.results import read_measured
from aia_jax.data.photo_folder import photo_names
from aia_jax.data.search.keywords import KeywordVocabulary, clickture_split, coco_splits
from aia_jax.data.vocabulary import Vocabulary, encode_captions, read_captions, read_vectors
from aia_jax.metrics.thresholds import load_thresholds
from tests.soak import plain
from tests.soak.mutation import encoded, write_damaged, write_files, write_with_damage
from tests.soak.plain import NOTHING

_LABELS = ("sky", "water", "tree", "日本")
_ROW = {"name": "best epoch", "published": "improved_loss/corel5k", "model": "m", "precision": 0.5, "num_images": 9}
_WORDS = ("<pad>", "<start>", "<end>", "<unk>", "a", "dog", "runs", ".")
SCAN = {
    "word2idx": {word: number for number, word in enumerate(_WORDS)},
    "idx2word": {str(number): word for number, word in enumerate(_WORDS)},
    "idx": len(_WORDS),
}
_CAPTIONS = ["A dog runs.", "a dog, a dog", "it's 日本 -- cannot", "a", "gonna run"]
_VECTORS = ["3 4", "dog 1 2 3 4", "runs 0.5 -1e-3 0 2", "cat 1 1 1 1"]
_COCO = {
    "images": [
        {"split": "train", "filename": "a.jpg", "imgid": 0, "sentences": [{"raw": "a dog"}]},
        {"split": "train", "filename": "val/b.jpg", "imgid": 7},
        {"split": "test", "filename": "a.jpg", "imgid": 3},
    ]
}


def thresholds(rng: random.Random, folder: Path) -> None:
    """`thresholds.json`."""
    path = folder / "thresholds.json"
    data = write_damaged(path, {label: 0.25 * number for number, label in enumerate(_LABELS)}, rng)
    plain.compare(_thresholds_of(data), lambda: load_thresholds(path, _LABELS).tolist(), path)


def results(rng: random.Random, folder: Path) -> None:
    """Results files below a folder. `aia results` shows the valid rows and lists the others."""
    other = {**_ROW, "name": "x", "published": "", "i2t_r1": 3}
    data = write_damaged(folder / "metrics.json", {"rows": [_ROW, other], "other": [1]}, rng)
    assert main(["results", str(folder), "--json", str(folder / "table.out")]) == 0
    document = plain.json_of(data)
    given = document.get("rows", []) if isinstance(document, dict) else []
    measured, problems = read_measured([folder])
    rows = [row for found in measured.values() for row in found]
    counted = len(given) if isinstance(given, list) else 0
    assert len(rows) + len(problems) == counted or (not rows and len(problems) == 1), (rows, problems)
    for row in rows:
        sources = [one for one in given if isinstance(one, dict) and one.get("name") == row["name"]]
        assert any(row["metrics"] == {key: one.get(key) for key in row["metrics"]} for one in sources), row
        assert all(map(plain.is_number, row["metrics"].values())), row
    table = json.loads((folder / "table.out").read_text())
    json.dumps(table, allow_nan=False)  # raises an error for NaN and Infinity, which are not JSON
    shown = [*table["no_published_row"], *(row for result in table["results"] for row in result["measured"])]
    assert len(shown) == len(rows), (shown, rows)
    if problems:
        raise plain.Refused


def keywords(rng: random.Random, folder: Path) -> None:
    """`aia keywords` on a folder of keyword files, one of them damaged."""
    output, tagging = folder / "out", {"tagging": {"keywords": ["red boat", "boats", "the sea"]}}
    write_files({"a.json": encoded(tagging)}, folder / "keywords")
    data = write_damaged(folder / "keywords" / "b.json", tagging, rng)
    arguments = ["--layout=folder", f"--keywords={folder}/keywords", "--min_count=1", f"--output={output}"]
    code, found = main(["keywords", *arguments]), _keywords_of(data)
    if found is NOTHING:
        assert code == 2, code
        assert not list(output.glob("*"))
        raise plain.Refused
    assert code == 0, code
    words = KeywordVocabulary.load(output / "keyword_vocabulary.json").words
    assert {"red", "boat", "boats", "sea"} <= set(words), words
    record = np.load(output / "keyword_record_all.npy", allow_pickle=False)
    assert [words[word] for image, word in record if image == 0] == ["red", "boat", "boats", "sea"]
    assert all(words[word] in " ".join(found).lower() for image, word in record if image == 1)


def lists(rng: random.Random, folder: Path) -> None:
    """COCO's dataset.json, a Clickture list, and a list of photos."""
    rng.choice((_coco, _clickture, _photo_list))(rng, folder)


def scan(rng: random.Random, folder: Path) -> None:
    """SCAN's vocabulary and captions, and the encoded captions."""
    words, lines = folder / "vocab.json", folder / "train_caps.txt"
    _, files = write_with_damage({words.name: SCAN, lines.name: _CAPTIONS}, folder, rng)
    captions = _captions_of(files[lines.name])
    plain.compare(_ids_of(files[words.name]), lambda: Vocabulary.load(words).ids, words)
    plain.compare(captions, lambda: list(read_captions(lines)), lines)
    vocabulary = Vocabulary.load(words)
    assert len(vocabulary.facts["sha256"]) == 64
    with plain.may_refuse():  # most words are unknown
        rows, lengths = encode_captions(captions, vocabulary)
    assert 0 <= rows.min() <= rows.max() < len(vocabulary)
    assert lengths.max() == rows.shape[1]


def vectors(rng: random.Random, folder: Path) -> None:
    """Word vectors as text."""
    vocabulary = Vocabulary(dict(SCAN["word2idx"]))
    data, (ids, rows) = plain.read_damaged(folder / "vectors.txt", _VECTORS, rng, read_vectors, vocabulary, 4)
    assert (rows.shape, rows.dtype) == ((len(ids), 4), np.float32)
    assert np.isfinite(rows).all()
    lines = dict(line.rstrip().partition(" ")[::2] for line in re.split("\r\n|\r|\n", data.decode()))
    raw = np.array([[float(number) for number in lines[_WORDS[index]].split(" ")] for index in ids])
    scale = np.sqrt(np.square(raw).mean())
    np.testing.assert_allclose(rows * scale if scale else rows, raw, rtol=1e-4, atol=1e-6)


@plain.or_nothing
def _thresholds_of(data: bytes) -> list[float]:
    document = plain.json_of(data)
    found = [document[label] for label in _LABELS]
    good = len(document) == len(found) and all(plain.is_number(value) and 0 <= value <= 1 for value in found)
    return found if good else NOTHING


@plain.or_nothing
def _keywords_of(data: bytes) -> list[str]:
    found = plain.json_of(data)["tagging"]["keywords"]
    return found if isinstance(found, list) and all(isinstance(word, str) for word in found) else NOTHING


@plain.or_nothing
def _ids_of(data: bytes) -> dict[str, int]:
    ids = plain.json_of(data)["word2idx"]
    good = all(type(number) is int for number in ids.values()) and sorted(ids.values()) == list(range(len(ids)))
    good = good and set(_WORDS[:4]) <= set(ids) and ids["<pad>"] == 0
    return ids if good and not re.search("[\ud800-\udfff]", "".join(ids)) else NOTHING


@plain.or_nothing
def _captions_of(data: bytes) -> list[str]:
    captions = [line.strip() for line in plain.text_of(data).removesuffix("\n").split("\n")]
    return captions if all(captions) and not captions[0].startswith(('{"', '["', "[{")) else NOTHING  # no JSON


def _coco(rng: random.Random, folder: Path) -> None:
    data, splits = plain.read_damaged(folder / "dataset.json", _COCO, rng, coco_splits, folder)
    for split in splits:
        images = [image for image in plain.json_of(data)["images"] if image["split"] == split.name]
        assert split.ids.tolist() == [image["imgid"] for image in images]
        for keyword_file, image in zip(split.paths(), images, strict=True):
            assert keyword_file.parent == folder / f"keyword_{split.name}"
            assert image["filename"].startswith(keyword_file.stem, image["filename"].rstrip("/").rfind("/") + 1)


def _clickture(rng: random.Random, folder: Path) -> None:
    names = [f"part/{number}" for number in (5, 17, 0, 134217727)]
    data, split = plain.read_damaged(folder / "dev.lst", names, rng, clickture_split, folder, "dev")
    lines = [line.strip().strip("/") for line in plain.text_of(data).rstrip().split("\n")]
    assert [name.rsplit("/")[-1] for name in lines] == [name.rsplit("/")[-1] for name in split.names]
    assert split.ids.tolist() == [int(name.rsplit("/")[-1]) for name in split.names]
    assert all(file.resolve().is_relative_to(folder) for file in split.paths())


def _photo_list(rng: random.Random, folder: Path) -> None:
    photos, path = folder / "photos", folder / "names.txt"
    names = ["a.jpg", "sub/b.jpg", "日本.jpg"]
    write_files(dict.fromkeys(names, b"photo"), photos)
    data = write_damaged(path, [*names, *rng.choices(("../names.txt", str(path), "sub"), k=rng.randrange(2))], rng)
    with plain.may_refuse(path):
        found = photo_names(photos, path)
    assert set(found) <= {*names, "./a.jpg"}, found
    lines = [unquote(line.strip()) for line in plain.text_of(data).rstrip().splitlines()]
    for line, name in zip(lines, found, strict=True):  # The folder, the case and the suffix may differ.
        assert PurePosixPath(name).stem in unicodedata.normalize("NFKC", line).casefold(), (line, name)
