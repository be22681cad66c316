"""`aia keywords`: the arrays of each layout; all files are written, or none."""

import json
from pathlib import Path

import numpy as np
import pytest

from aia_jax.cli.main import main
from aia_jax.data.search.keywords import KeywordVocabulary


def write_keywords(path: Path, keywords: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"tagging": {"keywords": keywords}}))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Tagging files of five photos in the current directory, in two folders."""
    monkeypatch.chdir(tmp_path)
    words = {"1": ["Dog", "old dog", "sky"], "0": ["dog", "the sea"], "b/2.png": [], "b/10.png": ["Sky", "x"]}
    for name, keywords in {**words, ".trash/9": ["dog"]}.items():
        write_keywords(Path(f"k/{name}.json"), keywords)
    Path("k/notes.txt").write_text("no keywords")
    Path("list.lst").write_text("0\n1\nb/2.png\n")
    return tmp_path


FOLDER = ["keywords", "--layout=folder", "--keywords=k", "--output=out", "--min_count=2"]
CLICKTURE = ["keywords", "--layout=clickture", "--keywords=k", "--output=out", "--list=list.lst"]
COCO = ["keywords", "--layout=coco", "--keywords=k", "--list=dataset.json", "--output=out", "--min_count=2"]


def left() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir()) if Path("out").exists() else []


def test_a_folder(here, capsys):
    assert main(FOLDER) == 0
    assert capsys.readouterr().out == (
        "all: 4 images, 1.25 keywords an image, 1 images without any\n2 words in the vocabulary; written to out\n"
    )
    files = ["keyword_names_all.json", "keyword_ranges_all.npy", "keyword_record_all.npy", "keyword_vocabulary.json"]
    assert left() == files
    assert KeywordVocabulary.load("out/keyword_vocabulary.json").words == ("dog", "sky")
    assert json.loads(Path("out/keyword_names_all.json").read_text()) == {"0": 0, "1": 1, "b/10.png": 2, "b/2.png": 3}
    assert np.load("out/keyword_record_all.npy").tolist() == [[0, 0], [1, 0], [1, 0], [1, 1], [2, 1]]
    assert np.load("out/keyword_ranges_all.npy").tolist() == [[0, 0], [1, 3], [4, 4], [-1, -1]]


def test_a_second_clickture_list_takes_the_words_of_the_first(here, failing):
    Path("dev.lst").write_text("b/7\n3\n\n")
    Path("lite.lst").write_text("/4\n")
    for name, keywords in {"b/7": ["dog"], "3": ["dog", "sea"], "4": ["sea", "cat", "dog"]}.items():
        write_keywords(Path(f"files/{name}.json"), keywords)
    dev = [*CLICKTURE, "--keywords=files", "--list=dev.lst", "--min_count=1"]
    vocabulary = "--vocabulary=out/keyword_vocabulary.json"
    lite = [*CLICKTURE, "--keywords=files", "--list=lite.lst", "--split=train", vocabulary]
    assert main(dev) == 0
    assert main(lite) == 0
    assert json.loads(Path("out/keyword_names_dev.json").read_text()) == {"b/7": 7, "3": 3}
    assert np.load("out/keyword_record_dev.npy").tolist() == [[7, 0], [3, 0], [3, 1]]
    assert len(np.load("out/keyword_ranges_dev.npy")) == 8
    assert np.load("out/keyword_record_train.npy").tolist() == [[4, 1], [4, 0]]
    error = failing(*dev, "--force")
    assert "out/keyword_record_train.npy needs out/keyword_vocabulary.json as it is: use it with" in error
    KeywordVocabulary(["sea"]).save("other.json")
    error = failing(*lite, "--vocabulary=other.json", "--force")
    assert "keyword_vocabulary.json has other words than --vocabulary other.json; name" in error
    KeywordVocabulary(["bird"]).save("other.json")
    error = failing(*lite, "--vocabulary=other.json", "--output=new")
    assert "no keyword of train is in other.json; is it that of these images?" in error
    assert main([*lite, "--output=new"]) == 0
    assert KeywordVocabulary.load("new/keyword_vocabulary.json").words == ("dog", "sea")


A = ("train", "a", 0)


def coco(*images: tuple[str, str, object]) -> None:
    entries = [{"split": split, "filename": name, "imgid": number, "sentences": []} for split, name, number in images]
    Path("dataset.json").write_text(json.dumps({"images": entries}))


def test_coco(here, capsys):
    first = ("test", "c.x.jpg", 1), ("val", "v.jpg", 6)
    coco(*first, ("train", "a.jpg", 3), ("train", "b.jpg", 0), ("restval", "r.jpg", 4))
    write_keywords(Path("k/keyword_train/a.json"), ["dog", "cat"])
    write_keywords(Path("k/keyword_train/b.json"), [])
    write_keywords(Path("k/keyword_test/c.x.json"), ["Cat", "dog", "sea"])
    assert main(COCO) == 0
    assert capsys.readouterr().out == (
        "train: 2 images, 1.00 keywords an image, 1 images without any\n"
        "test: 1 images, 2.00 keywords an image, 0 images without any\n"
        "2 words in the vocabulary; written to out\n"
    )
    assert np.load("out/keyword_record_train.npy").tolist() == [[3, 1], [3, 0]]
    assert np.load("out/keyword_record_test.npy").tolist() == [[1, 0], [1, 1]]
    for split, ranges in {"train": {3: [0, 1]}, "test": {1: [0, 1]}}.items():
        wanted = [ranges.get(number, [-1, -1]) for number in range(7)]
        assert np.load(f"out/keyword_ranges_{split}.npy").tolist() == wanted
    assert json.loads(Path("out/keyword_names_train.json").read_text()) == {"a": 3, "b": 0}


def test_outputs_are_replaced_only_by_force(here, failing):
    assert main(FOLDER) == 0
    before = Path("out/keyword_record_all.npy").read_bytes()
    write_keywords(Path("k/z.json"), ["sky"])
    problem = "out/keyword_record_all.npy is there already; --force replaces it, --output names another place"
    assert failing(*FOLDER).endswith(f"error: {problem}\n")
    Path("k/bad.json").write_text("{}")
    failing(*FOLDER, "--force")
    assert Path("out/keyword_record_all.npy").read_bytes() == before
    Path("k/bad.json").unlink()
    assert main([*FOLDER, "--force"]) == 0
    assert len(np.load("out/keyword_record_all.npy")) == 6
    assert len(left()) == 4


def test_all_unusable_files_are_listed(here, failing):
    Path("many.lst").write_text("\n".join(f"x/{number}" for number in range(30)))
    write_keywords(Path("k/x/3.json"), ["dog"])
    Path("k/x/4.json").write_text("no JSON")
    error = failing(*CLICKTURE, "--list=many.lst")
    assert "error: 29 of 30 keyword files cannot be used; nothing was written. An image without keywords has" in error
    assert "empty list:\n  k/x/0.json cannot be read: No such file or directory\n  k/x/1.json" in error
    assert "  k/x/4.json is not JSON: Expecting value" in error
    assert error.endswith("\n  ... and 9 more\n")
    assert left() == []


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        (CLICKTURE, "", "list.lst is empty; every line must name a file whose last part is the image id"),
        (CLICKTURE, "1\n\n2\n", "list.lst:2: '' is not an id, a number from 0 to 134,217,727"),
        (CLICKTURE, "1\nb/dog\nx/-3\n", "2 image(s) have no unique id:\n  list.lst:2: 'dog' is not an id"),
        (CLICKTURE, "1\n2\nb/01\n", "list.lst:3: id 1 is already at list.lst:1"),
        (CLICKTURE, "3385593926\n", "list.lst:1: 3385593926 is not an id"),
        (CLICKTURE, "1\n../../x/5\n", "list.lst:2: '../../x/5' leaves the folder of the photos; it must be relative"),
        (CLICKTURE, "9" * 5000, "list.lst:1: '99999"),
        (CLICKTURE, None, "list.lst cannot be read: No such file or directory"),
        (COCO, (("test", "\0", 0),), "images[0].filename must be a file name"),
        (COCO, "[]", 'dataset.json has no images; expected {"images": [{"split": "train"'),
        (COCO, '{"images": [3]}', "dataset.json: images[0] has no split"),
        (COCO, '{"images": [{"split": "test", "filename": "a"}]}', "dataset.json: images[0] has no imgid"),
        (COCO, (("test", 1, 0),), "images[0].filename must be a string, found 1"),
        (COCO, (("train", "a", "0"),), "dataset.json: images[0].imgid: '0' is not an id"),
        (COCO, (A, ("test", "b", 0)), "images[1].imgid: id 0 is already at dataset.json: images[0].imgid"),
        (COCO, (A, ("val", "b", 1)), "has no image of split 'test'; expected images of train and test"),
        (COCO, (("train", "a.jpg", 0), ("train", "a.png", 1)), "two images of split 'train' are called a; each needs"),
        (COCO, (A, ("test", "b", 1)), "2 of 2 keyword files cannot be used"),
    ],
)
def test_bad_lists_and_datasets_are_reported_with_the_place(here, failing, command, content, message):
    if content is None:
        Path("list.lst").unlink()
    elif isinstance(content, str):
        Path("list.lst" if command is CLICKTURE else "dataset.json").write_text(content)
    else:
        coco(*content)
    assert message in failing(*command)
    assert left() == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vocabulary=list.lst"], "argument --vocabulary: not allowed with argument --min_count"),
        (["--keywords=none"], "--keywords none does not exist"),
        (["--keywords=list.lst"], "--keywords list.lst is no folder"),
        (["--keywords=empty"], "empty has no keyword files; their names must end in .json"),
        (["--output=list.lst/deep"], "list.lst is a file; name a folder"),
        (["--output=k/out"], "--output k/out lies in --keywords k, whose .json files are keywords; name another"),
        (["--list=list.lst"], "--layout folder takes no --list"),
        (["--layout=clickture"], "--layout clickture needs --list, the file that lists the images"),
        (["--layout=coco", "--list=x", "--split=x"], "--layout coco takes no --split, it has train and test"),
        (["--split=a/b"], "--split a/b is part of file names; it must hold no slash"),
        (["--min_count=0"], "argument --min_count: must be at least 1, not 0"),
        (["--min_count=4"], "no word is in the keywords of 4 images; give more images or a lower min_count"),
        (["--output=blocked"], "blocked/keyword_ranges_all.npy is a folder; name another --output"),
    ],
)
def test_mistakes_are_reported(here, failing, flags, message):
    Path("empty").mkdir()
    Path("blocked/keyword_ranges_all.npy").mkdir(parents=True)
    error = failing(*FOLDER, *flags)
    assert message in error
    assert "error: " in error
    assert left() == []
