import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from aia_jax.data.retrieval.photo_captions import load_photo_captions, read_photo_captions
from aia_jax.utils.errors import InputError
from tests.helpers.photos import make_photo

CAPTIONS = {"a.jpg": ["a dog", "a dog runs"], "b c.jpg": ["a cat"]}


def data(root, **overrides):
    fields = {
        "root": str(root),
        "captions": "",
        "photos": "",
        "validation_fraction": 0.25,
        "cache_dir": str(root / "c"),
    }
    return ConfigDict(fields | {"skip_corrupt": False, "num_workers": 1} | overrides)


def lines(records):
    return "".join(f"{json.dumps(record)}\n" for record in records)


LAYOUTS = {
    "json lines, a caption each": {
        "train.jsonl": lines({"image": name, "caption": text} for name, texts in CAPTIONS.items() for text in texts)
    },
    "json lines, lists": {
        "train.jsonl": lines({"file_name": name, "captions": texts} for name, texts in CAPTIONS.items())
    },
    "csv": {"train.csv": "image,caption\na.jpg,a dog\na.jpg,a dog runs\nb c.jpg,a cat\n"},
    "semicolons and other names": {"train.csv": "filename;text\na.jpg;a dog\na.jpg;a dog runs\nb c.jpg;a cat\n"},
}


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_captions_of_each_photo(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_photo_captions(data(tmp_path), "train", 0) == CAPTIONS


def test_pairs_of_text_files_have_equally_many_captions_for_each_photo(tmp_path):
    (tmp_path / "dev_images.txt").write_text("a.jpg\nb c.jpg\n")
    (tmp_path / "dev_caps.txt").write_text("one\ntwo\nthree\nfour\n")
    assert read_photo_captions(data(tmp_path), "validation", 0) == {
        "a.jpg": ["one", "two"],
        "b c.jpg": ["three", "four"],
    }
    (tmp_path / "dev_caps.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(InputError, match=r"2 photos, and .* 3 captions"):
        read_photo_captions(data(tmp_path), "validation", 0)


def test_the_json_of_karpathy_has_splits_and_folders(tmp_path):
    images = [
        {"filepath": "val2014", "filename": "a.jpg", "split": split, "sentences": [{"raw": "a dog.\n"}]}
        for split in ("restval",)
    ] + [{"filename": "b.jpg", "split": "test", "sentences": [{"raw": "a cat"}, {"raw": "cats"}]}]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    config = data(tmp_path, captions="dataset_coco.json")
    assert read_photo_captions(config, "train", 0) == {"val2014/a.jpg": ["a dog."]}
    assert read_photo_captions(config, "test", 0) == {"b.jpg": ["a cat", "cats"]}
    with pytest.raises(InputError, match="no photo with a caption in this split"):
        read_photo_captions(config, "validation", 0)


def test_one_file_is_split_at_random_by_photo(tmp_path):
    (tmp_path / "all.csv").write_text("image,caption\n" + "".join(f"{i % 8}.jpg,photo {i}\n" for i in range(16)))
    config = data(tmp_path, captions="all.csv")
    parts = [set(read_photo_captions(config, split, 1)) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [4, 2, 2]
    assert set.union(*parts) == {f"{i}.jpg" for i in range(8)}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("train.jsonl", '{"image": "a.jpg"}\n', r"train.jsonl:1 has none of caption"),
        ("train.jsonl", '{"image": "a.jpg", "caption": "x", "text": "y"}\n', "has caption and text; keep one"),
        ("train.jsonl", '{"image": "a.jpg", "caption": " "}\n', "train.jsonl:1: the caption is empty"),
        ("train.jsonl", "a.jpg a dog\n", "train.jsonl:1 is not JSON"),
        ("train.jsonl", '{"image": "a.jpg", "caption": 3}\n', "must be texts"),
        ("train.csv", "name,words\na.jpg,x\n", "has none of image"),
        ("train.csv", "image,caption\na.jpg,a dog, a cat\n", "1 rows cannot be read"),
        ("notes.txt", "", "has no captions of the train split"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=problem):
        read_photo_captions(data(tmp_path), "train", 0)


def test_a_loaded_split_has_the_photo_of_each_caption(tmp_path):
    for name in CAPTIONS:
        make_photo(tmp_path / "images" / name)
    (tmp_path / "test.jsonl").write_text(LAYOUTS["json lines, lists"]["train.jsonl"])
    split = load_photo_captions(data(tmp_path), "test", 16, 0)
    assert split.images.shape == (2, 16, 16, 3)
    assert split.captions == ("a dog", "a dog runs", "a cat")
    np.testing.assert_array_equal(split.owners, [0, 0, 1])
    (tmp_path / "images" / "b c.jpg").unlink()
    with pytest.raises(InputError, match="1 photo cannot be used"):
        load_photo_captions(data(tmp_path), "test", 16, 0)
