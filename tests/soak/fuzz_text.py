"""Damaged text and JSON: thresholds, results, keywords, captions, vocabularies, word vectors, lists of photos."""

import json
import random
import re
from pathlib import Path

import numpy as np

from aia_jax.cli.main import main
from aia_jax.cli.results import read_measured
from aia_jax.data.photo_folder import photo_names
from aia_jax.data.search.keywords import KeywordVocabulary, clickture_split, coco_splits
from aia_jax.data.vocabulary import Vocabulary, encode_captions, read_captions, read_vectors
from aia_jax.metrics.thresholds import load_thresholds
from tests.soak import plain
from tests.soak.mutation import damaged_json, damaged_lines, write_damaged
from tests.soak.plain import NOTHING

_LABELS = ("sky", "water", "tree", "日本")
_ROW = {"name": "best epoch", "published": "improved_loss/corel5k", "model": "m", "precision": 0.5, "num_images": 9}
_WORDS = ("<pad>", "<start>", "<end>", "<unk>", "a", "dog", "runs", ".")
_SCAN = {
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
    document = plain.json_of(data)
    fits = isinstance(document, dict) and set(document) == set(_LABELS)
    good = fits and all(plain.is_number(value) and 0 <= value <= 1 for value in document.values())
    expected = [float(document[label]) for label in _LABELS] if good else NOTHING
    plain.compare(expected, lambda: load_thresholds(path, _LABELS).tolist(), path)


def results(rng: random.Random, folder: Path) -> None:
    """Results files below a folder. `aia results` shows the valid rows and lists the others."""
    data = damaged_json({"rows": [_ROW, {**_ROW, "name": "x", "published": "", "i2t_r1": 3}], "other": [1]}, rng)
    (folder / "metrics.json").write_bytes(data)
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
    table = json.loads((folder / "table.out").read_text(), parse_constant=_no_constant)
    shown = [*table["no_published_row"], *(row for result in table["results"] for row in result["measured"])]
    assert len(shown) == len(rows), (shown, rows)
    if problems:
        raise plain.Refused


def keywords(rng: random.Random, folder: Path) -> None:
    """`aia keywords` on a folder of keyword files, one of them damaged."""
    source, output = folder / "keywords", folder / "out"
    source.mkdir()
    tagging = {"tagging": {"keywords": ["red boat", "boats", "the sea"]}}
    (source / "a.json").write_text(json.dumps(tagging))
    data = damaged_json(tagging, rng)
    (source / "b.json").write_bytes(data)
    arguments = ["--layout=folder", f"--keywords={source}", "--min_count=1", f"--output={output}"]
    document = plain.json_of(data)
    inner = document.get("tagging") if isinstance(document, dict) else None
    found = inner.get("keywords") if isinstance(inner, dict) else None
    code = main(["keywords", *arguments])
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
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
    vocabulary_data, captions_data = json.dumps(_SCAN).encode(), "\n".join(_CAPTIONS).encode()
    if rng.random() < 0.5:
        vocabulary_data = damaged_json(_SCAN, rng)
    else:
        captions_data = damaged_lines(_CAPTIONS, rng)
    words.write_bytes(vocabulary_data)
    lines.write_bytes(captions_data)
    document = plain.json_of(vocabulary_data)
    ids = document.get("word2idx") if isinstance(document, dict) else None
    good = isinstance(ids, dict) and all(type(number) is int for number in ids.values())
    good = good and sorted(ids.values()) == list(range(len(ids))) and set(_WORDS[:4]) <= set(ids) and ids["<pad>"] == 0
    good = good and not any("\ud800" <= character <= "\udfff" for word in ids for character in word)
    text = plain.text_of(captions_data)
    captions = NOTHING if text is NOTHING else [line.strip() for line in text.removesuffix("\n").split("\n")]
    captions = captions if captions is not NOTHING and all(captions) else NOTHING
    plain.compare(ids if good else NOTHING, lambda: Vocabulary.load(words).ids, words)
    plain.compare(captions, lambda: list(read_captions(lines)), lines)
    vocabulary = Vocabulary.load(words)
    assert len(vocabulary.facts["sha256"]) == 64
    with plain.may_refuse():  # most words are unknown
        rows, lengths = encode_captions(captions, vocabulary)
    assert 0 <= rows.min() <= rows.max() < len(vocabulary)
    assert lengths.max() == rows.shape[1]


def vectors(rng: random.Random, folder: Path) -> None:
    """Word vectors as text."""
    path = folder / "vectors.txt"
    data = write_damaged(path, _VECTORS, rng)
    vocabulary = Vocabulary(dict(_SCAN["word2idx"]))
    with plain.may_refuse(path, right=data.decode(errors="replace") != "\n".join([*_VECTORS, ""])):
        ids, rows = read_vectors(path, vocabulary, 4)
    assert (rows.shape, rows.dtype) == ((len(ids), 4), np.float32)
    assert np.isfinite(rows).all()
    lines = dict(line.rstrip().partition(" ")[::2] for line in re.split("\r\n|\r|\n", data.decode()))
    raw = np.array([[float(number) for number in lines[_WORDS[index]].split(" ")] for index in ids])
    scale = np.sqrt(np.square(raw).mean())
    np.testing.assert_allclose(rows * scale if scale else rows, raw, rtol=1e-4, atol=1e-6)


def _coco(rng: random.Random, folder: Path) -> None:
    path = folder / "dataset.json"
    data = write_damaged(path, _COCO, rng)
    document = plain.json_of(data)
    with plain.may_refuse(path, right=data != json.dumps(_COCO).encode()):
        splits = coco_splits(path, folder)
    for split in splits:
        images = [image for image in document["images"] if image["split"] == split.name]
        assert split.ids.tolist() == [image["imgid"] for image in images]
        for keyword_file, image in zip(split.paths(), images, strict=True):
            assert keyword_file.parent == folder / f"keyword_{split.name}"
            assert image["filename"].startswith(keyword_file.stem, image["filename"].rstrip("/").rfind("/") + 1)


def _clickture(rng: random.Random, folder: Path) -> None:
    path = folder / "dev.lst"
    data = write_damaged(path, [f"part/{number}" for number in (5, 17, 0, 134217727)], rng)
    with plain.may_refuse(path):
        split = clickture_split(path, folder, "dev")
    lines = [line.strip().strip("/") for line in data.decode().removeprefix("\ufeff").rstrip().split("\n")]
    assert [name.rsplit("/")[-1] for name in lines] == [name.rsplit("/")[-1] for name in split.names]
    assert split.ids.tolist() == [int(name.rsplit("/")[-1]) for name in split.names]
    assert all(file.resolve().is_relative_to(folder) for file in split.paths())


def _photo_list(rng: random.Random, folder: Path) -> None:
    photos, path = folder / "photos", folder / "names.txt"
    (photos / "sub").mkdir(parents=True)
    names = ["a.jpg", "sub/b.jpg", "日本.jpg"]
    for name in names:
        (photos / name).write_bytes(b"photo")
    data = write_damaged(path, [*names, *rng.choices(("../names.txt", str(path), "sub"), k=rng.randrange(2))], rng)
    with plain.may_refuse(path):
        found = photo_names(photos, path)
    assert set(found) <= {*names, "./a.jpg"}, found
    assert [line.strip() for line in plain.text_of(data).rstrip().splitlines()] == list(found)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")
