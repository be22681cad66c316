import json
import re
import shutil
import time

import numpy as np
import pytest

from aia_jax.data.annotation.annotations import FOLDERS, read_annotations, read_labels
from aia_jax.utils.errors import InputError
from tests.conftest import SHARED_DATASETS
from tests.helpers.photos import LABELS, write_annotations


def _read_error(root) -> str:
    with pytest.raises(InputError) as caught:
        read_annotations(root, "corel5k", "train")
    return str(caught.value)


def test_targets_follow_the_order_of_the_vocabulary(tmp_path):
    write_annotations(
        tmp_path,
        [{"image_name": "b.jpg", "image_labels": ["tree", "sky"]}, {"image_name": "sub/a.jpg", "image_labels": []}],
    )
    annotations = read_annotations(tmp_path, "corel5k", "train")
    assert annotations.labels == tuple(LABELS)
    assert annotations.image_names == ("b.jpg", "sub/a.jpg")
    assert annotations.image_paths[1] == tmp_path / "Corel-5k" / "images" / "sub" / "a.jpg"
    assert annotations.targets.dtype == np.uint8
    np.testing.assert_array_equal(annotations.targets, [[1, 0, 1], [0, 0, 0]])
    swapped = annotations.take([1, 0])
    assert swapped.image_names == ("sub/a.jpg", "b.jpg")
    np.testing.assert_array_equal(swapped.targets, [[0, 0, 0], [1, 0, 1]])


def test_all_problems_of_a_file_are_listed_together(tmp_path):
    good = {"image_name": "a.jpg", "image_labels": ["sky"]}
    cases = [
        (good, "", None),
        (good, ".image_name", "'a.jpg' is already the name of samples[0]"),
        ({"image_name": "b.jpg", "image_labels": ["wather"]}, ".image_labels", "did you mean 'water'?"),
        ({"image_name": "../c.jpg", "image_labels": []}, ".image_name", "leaves the folder"),
        ({"image_name": 7, "image_labels": []}, ".image_name", "found 7"),
        ({"image_labels": []}, ".image_name", "found None"),
        ({"image_name": "g.jpg"}, ".image_labels", "found null"),
        ({"image_name": "h.jpg", "image_labels": "sky"}, ".image_labels", "found a string"),
        ({"image_name": "i.jpg", "image_labels": [3]}, ".image_labels", "3 is not a name"),
        ("j.jpg", "", "found a string"),
    ]
    path = write_annotations(tmp_path, [sample for sample, _, _ in cases])
    lines = _read_error(tmp_path).splitlines()
    assert str(path) in lines[0]
    for index, (_, field, text) in enumerate(cases):
        matching = [line for line in lines if f"samples[{index}]{field}:" in line]
        assert len(matching) == (text is not None), index
        assert all(text in line for line in matching)


UNSAFE_NAMES = ("../x", "/etc/passwd", "C:\\x", "C:x", "a/../../x", "a\\..\\..\\x", "\\\\host\\x", "..", "//x", "./")


@pytest.mark.parametrize("name", [*UNSAFE_NAMES, "", "\0", "\ud800"])
def test_no_name_leaves_the_folder_of_the_photos(tmp_path, ssgrl, name):
    write_annotations(tmp_path, [{"image_name": name, "image_labels": []}])
    problems = (f"{name!r} leaves", f"must be a file name, found {name!r}", f"{name!r} cannot be written as UTF-8")
    message = _read_error(tmp_path)
    assert any(f"samples[0].image_name: {problem}" in message for problem in problems)
    if name.isprintable() and name:
        (ssgrl / "train_list_500.txt").write_text(f"{name}\n")
        (ssgrl / "vg_category_500_labels_index.json").write_text(json.dumps({name: [0]}))
        with pytest.raises(InputError, match=re.escape(repr(name))):
            read_annotations(tmp_path, "vg500", "train")


@pytest.mark.parametrize("ssgrl", [""], indirect=True)
def test_a_million_of_anything_takes_seconds(tmp_path, ssgrl):
    many = [f"label {number}" for number in range(200_000)]
    start = time.perf_counter()
    write_annotations(tmp_path, [{"image_name": "a.jpg", "image_labels": many}])
    message = _read_error(tmp_path)  # the list of problems is cut
    assert len(message.splitlines()) == 22
    assert "200,000 problem(s)" in message
    assert "and 199,980 more" in message
    write_annotations(tmp_path, [{"image_name": "a.jpg", "image_labels": ["lable 7"]}], many)
    assert "'lable 7' is not in the vocabulary of 200,000 labels" in _read_error(tmp_path)
    write_annotations(tmp_path, [{"image_name": f"{n}.jpg", "image_labels": []} for n in range(5001)], many)
    assert "5,001 images by 200,000 labels are more than 1,000,000,000 together" in _read_error(tmp_path)
    (ssgrl / "train_list_500.txt").write_text("1.jpg\n" * 3000)
    (ssgrl / "vg_category_500_labels_index.json").write_text(json.dumps({"1.jpg": [0] * 100_000}))
    with pytest.raises(InputError, match=r"line 2.image_name: '1.jpg' is already the name of line 1"):
        read_annotations(tmp_path, "vg500", "train")
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"labels": [],\n "samples": [}', "line 2, column 14"),
        (b"", "not JSON"),
        (b"[]", "found a list"),
        (b'{"labels": ["a"]}', "'samples' must be a list, found nothing"),
        (b'{"labels": {"a": 1}, "samples": []}', "'labels' must be a list, found an object"),
        (b'{"labels": ["a"], "samples": []}', "empty"),
        (b'{"labels": ["sky", "sky"], "samples": []}', "labels[1]: 'sky' repeats labels[0]"),
        (b'{"labels": ["sky", 3], "samples": []}', "labels[1]: must be one line"),
        (b'{"labels": [" sky"], "samples": []}', "labels[0]: must be one line"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, content, text):
    path = write_annotations(tmp_path, [])
    path.write_bytes(content)
    message = _read_error(tmp_path)
    assert str(path) in message
    assert text in message


def test_a_missing_root_and_unknown_names_are_refused_with_what_is_expected(tmp_path):
    message = _read_error(tmp_path / "nowhere")
    for text in (str(tmp_path / "nowhere" / "Corel-5k" / "train.json"), "config.data.root", "images/"):
        assert text in message
    with pytest.raises(InputError, match="known: corel5k, espgame, iaprtc12, vg500"):
        read_annotations(tmp_path, "corel", "train")
    with pytest.raises(InputError, match="known: train, test"):
        read_annotations(tmp_path, "corel5k", "dev")


@pytest.mark.parametrize(
    ("dataset", "split", "sizes"),  # numbers of images, labels and images without labels
    [
        ("corel5k", "train", (4_500, 260, 7)),
        ("corel5k", "test", (499, 260, 0)),
        ("espgame", "train", (18_689, 268, 2)),
        ("espgame", "test", (2_081, 268, 0)),
        ("iaprtc12", "train", (17_665, 291, 0)),
        ("iaprtc12", "test", (1_962, 291, 0)),
        ("vg500", "test", (10_000, 500, 0)),
    ],
)
def test_counts_of_the_real_annotations(dataset, split, sizes):
    if not (SHARED_DATASETS / FOLDERS[dataset] / f"{split}.json").is_file():
        pytest.skip("the real annotations are not on this machine")
    annotations = read_annotations(SHARED_DATASETS, dataset, split)
    assert (*annotations.targets.shape, np.sum(~annotations.targets.any(axis=1))) == sizes
    assert len(annotations) == sizes[0]


@pytest.fixture(params=["", "ssgrl", "data/VG"])
def ssgrl(tmp_path, request):
    """SSGRL's files in one of their three possible folders, and photos in both folders of Visual Genome."""
    folder = tmp_path / "VG-500" / request.param
    for name in ("VG_100K/1.jpg", "VG_100K_2/2.jpg"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"photo")
    (folder / "train_list_500.txt").write_text("2.jpg\n1.jpg\n")
    (folder / "vg_category_500_labels_index.json").write_text(json.dumps({"1.jpg": [0], "2.jpg": [2, 1]}))
    (folder / "vg500_vocabulary.txt").write_text("window\nteddy bear\nman\n")
    return folder


def test_the_layout_of_ssgrl_is_read_and_missing_files_are_named(tmp_path, ssgrl):
    annotations = read_annotations(tmp_path, "vg500", "train")
    assert annotations.labels == ("window", "teddy bear", "man")
    assert annotations.image_names == ("2.jpg", "1.jpg")
    assert annotations.image_paths == (ssgrl / "VG_100K_2/2.jpg", ssgrl / "VG_100K/1.jpg")
    np.testing.assert_array_equal(annotations.targets, [[0, 1, 1], [1, 0, 0]])
    (ssgrl / "vg500_vocabulary.txt").unlink()
    with pytest.raises(InputError, match=r"vg500_vocabulary\.txt beside it"):
        read_annotations(tmp_path, "vg500", "train")
    shutil.rmtree(ssgrl)
    with pytest.raises(InputError, match=r"train\.json, or SSGRL's train_list_500\.txt"):
        read_annotations(tmp_path, "vg500", "train")


@pytest.mark.parametrize("numbers", [[3], [-1], ["0"], [True], 0, None])
def test_invalid_label_indices_of_ssgrl_are_refused(tmp_path, ssgrl, numbers):
    (ssgrl / "vg_category_500_labels_index.json").write_text(json.dumps({"2.jpg": numbers}))
    message = r"line 1: .* has .* for '2.jpg'; expected indices 0..2\n.*line 2: .*has no entry for"
    with pytest.raises(InputError, match=message):
        read_annotations(tmp_path, "vg500", "train")


@pytest.mark.parametrize(
    "text",
    ["# mine\nsky\n\n <b>water</b> \n#\n #\n", '["sky", "<b>water</b>"]', '\ufeff{"labels": ["sky", "<b>water</b>"]}'],
)
def test_labels_are_read_from_lines_and_from_json(write, text):
    assert read_labels(write(text.encode())) == ("sky", "<b>water</b>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no labels; expected one per line, or"),
        ({"names": []}, "holds no labels"),
        ({"labels": "sky"}, "holds no labels"),
        (b"{", "is not JSON"),
        (b"sky\nsky", r"labels\[1\]: 'sky' repeats labels\[0\]"),
        (["\ud800"], r"labels\[0\]: must be one line of text"),
    ],
)
def test_files_without_usable_labels_are_refused(write, content, message):
    with pytest.raises(InputError, match=rf"(?s)/labels .*{message}"):
        read_labels(write(content, "labels"))
