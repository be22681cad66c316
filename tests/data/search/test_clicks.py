"""Clickture's and COCO's layouts with keyword files of `aia keywords`."""

import json

import numpy as np
import pytest

from aia_jax.cli.main import main
from aia_jax.configs import amc
from aia_jax.data.search.clicks import ClickedImages
from aia_jax.tasks.registry import make_task
from aia_jax.utils.errors import InputError

KEYWORDS = {7: ["dog", "park"], 0: [], 3: ["dog", "dog", "ball"], 5: ["park"]}


def write_tagging(folder, keywords):
    folder.mkdir(parents=True)
    for name, words in keywords.items():
        (folder / f"{name}.json").write_text(json.dumps({"tagging": {"keywords": words}}))


@pytest.fixture
def clickture(tmp_path):
    root = tmp_path / "clickture"
    (tmp_path / "images.lst").write_text("".join(f"a/{image}\n" for image in KEYWORDS))
    write_tagging(tmp_path / "tags" / "a", KEYWORDS)
    command = ["keywords", "--layout=clickture", f"--keywords={tmp_path}/tags", f"--list={tmp_path}/images.lst"]
    for split, words in {"train": "--min_count=1", "test": f"--vocabulary={root}/keyword_vocabulary.json"}.items():
        assert main([*command, f"--split={split}", f"--output={root}", words]) == 0
        np.save(root / f"{split}_maps.npy", np.arange(4 * 4 * 2, dtype=np.float32).reshape(4, 4, 2))
    (root / "train_clicks.tsv").write_text("7\ta dog\t3\n3\ta dog\t1\n5\tgreen park\n99\telsewhere\t1\n")
    (root / "test_clicks.tsv").write_text("0\ta dog\t1\n")
    return tmp_path


def config_of(root, name):
    config = amc.get_config(name)
    config.data.root, config.eval.split = str(root), "test"
    return config


def test_clicked_images_are_relevant_and_a_task_reads_them(clickture):
    images = ClickedImages(config_of(clickture, "clickture"))
    part = images.load("train")
    assert part.queries.texts == ("a dog", "green park")
    assert part.queries.relevant.toarray().tolist() == [[1, 0, 1, 0], [0, 0, 0, 1]]  # rows 7, 0, 3, 5
    rows = zip(part.keywords, part.counts, strict=True)
    words = [[images.keyword_names[word] for word in row[:count]] for row, count in rows]
    assert words == list(KEYWORDS.values())
    task = make_task(config_of(clickture, "clickture"))
    assert len(task.split("test").queries) == 1
    assert task.epoch_end(256) == 3  # three pairs
    assert task.describe()["labels"] == ["ball", "dog", "park"]


def test_the_captions_of_coco_are_queries(clickture, tmp_path):
    images = [
        {"imgid": 4, "split": "train", "filename": "b.jpg", "sentences": [{"raw": "A dog."}, {"raw": "Two dogs"}]},
        {"imgid": 2, "split": "train", "filename": "a.jpg", "sentences": [{"raw": "A park"}]},
        {"imgid": 1, "split": "test", "filename": "c.jpg", "sentences": [{"raw": "A ball"}]},
    ]
    root = tmp_path / "coco"
    root.mkdir()
    (root / "dataset.json").write_text(json.dumps({"images": images}))
    write_tagging(root / "keyword_train", {"a": ["park"], "b": ["dog"]})
    write_tagging(root / "keyword_test", {"c": ["dog"]})
    flags = ["--layout=coco", f"--keywords={root}", f"--list={root}/dataset.json", "--min_count=1", f"--output={root}"]
    assert main(["keywords", *flags]) == 0
    np.save(root / "train_maps.npy", np.ones((2, 3, 3, 2), np.float32))
    part = ClickedImages(config_of(tmp_path, "coco")).load("train")
    assert part.queries.texts == ("A dog.", "Two dogs", "A park")
    assert part.queries.relevant.toarray().tolist() == [[1, 0], [1, 0], [0, 1]]
    (root / "dataset.json").write_text('{"images": [{"imgid": 1}]}')
    with pytest.raises(InputError, match=r"dataset.json is not as expected"):
        ClickedImages(config_of(tmp_path, "coco")).load("train")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train_clicks.tsv", b"seven\ta dog\t1\n", "train_clicks.tsv:1: expected id, query and clicks"),
        ("train_clicks.tsv", b"7 a dog\n", "train_clicks.tsv:1: expected id"),
        ("train_clicks.tsv", b"99\ta dog\t1\n", "no query in .* is for an image of the split 'train'"),
        ("train_clicks.tsv", None, "train_clicks.tsv"),
        ("train_maps.npy", None, "the maps of the images, does not exist"),
        ("train_maps.npy", b"x", "is not a .npy file, or is truncated"),
        ("train_maps.npy", np.ones((4, 5, 2), np.float32), r"of a square grid; found float32 \(4, 5, 2\)"),
        ("train_clicks.tsv", b"9" * 5000 + b"\ta dog\t1\n", "train_clicks.tsv:1: expected id, query and clicks"),
        ("keyword_names_train.json", b"[]", r"expected \{file: id\}, as aia keywords writes it, found a list"),
        ("keyword_names_train.json", b'{"a": 7.5}', "'a': 7.5 is not an id"),
        ("keyword_names_train.json", b'{"a": "7"}', "'a': '7' is not an id"),
        ("keyword_names_train.json", b'{"a": 7, "b": 7}', "'b': id 7 is already at .*'a'"),
        ("keyword_names_train.json", b'{"a": 1' + b"0" * 400 + b"}", "'a': 10000.* is not an id"),
        ("train_maps.npy", b"\x93NUMPY\x01\x00\x06\x00{'a':(", "is not a .npy file, or is truncated"),
        ("keyword_names_train.json", b'{"a": 7}', "holds maps of 4 images, but 1 have keywords"),
        ("keyword_record_train.npy", None, "does not exist; `aia keywords` writes it"),
    ],
)
def test_files_that_cannot_be_used_are_named(clickture, write, file, content, message):
    write(content, f"clickture/{file}")
    with pytest.raises(InputError, match=message):
        ClickedImages(config_of(clickture, "clickture")).load("train")
