"""`aia import-labels`: what it writes is what the annotation tasks and the authors' programs read."""

import csv
import gc
import json
import os
import shlex

import numpy as np
import pytest
from PIL import Image

from aia_jax.cli.main import main
from aia_jax.data import scenes
from aia_jax.data.annotation.annotations import read_annotations
from aia_jax.data.annotation.datasets import read_channel_stats
from aia_jax.data.image_decoding import decode_image

NUM_PHOTOS = 40


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """What reads photos collects garbage after it, which takes long with everything that other tests left."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Drawn scenes as files, and what is on them."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    labelled = {}
    for number in range(NUM_PHOTOS):
        scene = scenes.draw(3, number, 32)
        name = f"sub/{number:02}.png" if number % 2 else f"{number:02}.png"
        Image.fromarray(scene.image).save(folder / name)
        labelled[name] = scene.labels
    return folder, labelled


def write_table(path, rows, header=("image", "labels")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def table(photos, tmp_path):
    return write_table(tmp_path / "labels.csv", [(name, ";".join(labels)) for name, labels in photos[1].items()])


@pytest.fixture
def import_labels(photos, tmp_path):
    def run(labels, *flags, output=tmp_path / "mine"):
        images = [] if labels.is_dir() else ["--images", str(photos[0])]
        return main(["import-labels", "--labels", str(labels), *images, "--output", str(output), *flags])

    return run


def labels_of(root):
    """Photo to labels, of both splits."""
    found = {}
    for split in ("train", "test"):
        part = read_annotations(root, "custom", split)
        for name, row in zip(part.image_names, part.targets, strict=True):
            found[name] = {part.labels[column] for column in row.nonzero()[0]}
    return found


def test_what_is_written_is_what_the_table_said(import_labels, table, photos, tmp_path, capsys):
    folder, labelled = photos
    assert import_labels(table) == 0
    assert labels_of(tmp_path / "mine") == {name: set(labels) for name, labels in labelled.items()}
    assert (tmp_path / "mine" / "images").resolve() == folder
    train, test = (read_annotations(tmp_path / "mine", "custom", split) for split in ("train", "test"))
    assert train.labels == test.labels == tuple(sorted(set().union(*labelled.values())))
    assert abs(len(test) - NUM_PHOTOS / 5) <= 3
    for path in train.image_paths:
        Image.open(path).load()
    assert json.loads((tmp_path / "mine" / "train.json").read_text()).keys() == {"labels", "samples"}
    pixels = np.stack([decode_image(path.read_bytes(), 224) for path in train.image_paths]).reshape(-1, 3) / 255
    stats = pixels.mean(axis=0), pixels.std(axis=0)
    np.testing.assert_allclose(read_channel_stats(tmp_path / "mine"), stats, atol=1e-4)
    printed = capsys.readouterr()
    assert f"{NUM_PHOTOS} photos, {len(train)} for training, {len(test)} for test; 21 labels, " in printed.out
    assert f"--config.data.root={shlex.quote(str(tmp_path / 'mine'))}\n" in printed.out
    assert "reading photos: 100%" in printed.err


def test_the_seed_and_the_fraction_decide_the_parts(import_labels, table, tmp_path):
    names = []
    for flags in ([], ["--seed", "2"], ["--test_fraction", "0.5"]):
        assert import_labels(table, *flags, "--force") == 0
        names.append(read_annotations(tmp_path / "mine", "custom", "test").image_names)
    assert names[0] != names[1]
    assert abs(len(names[2]) - NUM_PHOTOS / 2) <= 2


def test_coco_and_folders_give_the_same_as_a_table(import_labels, table, photos, tmp_path):
    folder, labelled = photos
    assert import_labels(table, output=tmp_path / "of_table") == 0
    numbers = {label: number for number, label in enumerate(scenes.LABELS)}
    document = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(labelled)],
        "annotations": [
            {"image_id": number, "category_id": numbers[label]}
            for number, labels in enumerate(labelled.values())
            for label in labels
        ],
        "categories": [{"id": number, "name": label} for label, number in numbers.items()],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    assert import_labels(tmp_path / "instances.json", output=tmp_path / "of_coco") == 0
    for name, labels in labelled.items():
        for label in labels:
            (tmp_path / "folders" / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / "folders" / label / os.path.basename(name)).symlink_to(folder / name)
    assert import_labels(tmp_path / "folders", output=tmp_path / "of_folders") == 0
    files = [(tmp_path / output / "train.json").read_text() for output in ("of_table", "of_coco")]
    assert files[0] == files[1]
    by_name = {os.path.basename(name): labels for name, labels in labels_of(tmp_path / "of_folders").items()}
    assert by_name == {os.path.basename(name): set(labels) for name, labels in labelled.items()}


def test_splits_of_the_list_are_honoured(import_labels, photos, tmp_path, capsys):
    rows = [(name, labels[0], ("train", "val", "test")[n % 3]) for n, (name, labels) in enumerate(photos[1].items())]
    table = write_table(tmp_path / "labels.csv", rows, ("image", "label", "split"))
    assert import_labels(table) == 0
    test = read_annotations(tmp_path / "mine", "custom", "test")
    assert set(test.image_names) == {name for name, _, split in rows if split == "test"}
    assert "photos of the validation split are for training" in capsys.readouterr().out
    table = write_table(tmp_path / "labels.csv", [row for row in rows if row[2] != "test"], ("image", "label", "split"))
    assert import_labels(table, "--force") == 0
    test = read_annotations(tmp_path / "mine", "custom", "test")
    assert set(test.image_names) == {name for name, _, split in rows if split == "val"}
    assert import_labels(table, "--force", "--test_fraction", "0.5") == 2
    assert "gives the splits itself; leave out --test_fraction" in capsys.readouterr().err
    table = write_table(tmp_path / "labels.csv", rows[:1], ("image", "label", "split"))
    assert import_labels(table, "--force") == 2
    assert "puts all photos into train; some are needed for test" in capsys.readouterr().err


PROBLEMS = {
    ("ok.png", "sky", "train"): "",
    ("two.png", "sea", "test"): "",
    (" ok.png", "sky", "train"): "labels.csv:4: repeats the labels of 'ok.png', first at labels.csv:2",
    ("two.png", "sky", "train"): "labels.csv:5: 'two.png' is in split 'train', at labels.csv:3 in 'test'",
    ("absent.png", "sky", "train"): "labels.csv:6: no photo 'absent.png' in spoiled",
    ("../secret.png", "sky", "train"): "labels.csv:7: '../secret.png' leaves the folder of the photos; it must be rel",
    ("/etc/passwd", "sky", "train"): "labels.csv:8: '/etc/passwd' leaves the folder of the photos",
    ("C:\\a.png", "sky", "train"): "labels.csv:9: 'C:\\\\a.png' leaves the folder of the photos",
    ("torn.png", "sky", "train"): "labels.csv:10: 'torn.png': ",
    ("empty.png", "sky", "train"): "labels.csv:11: 'empty.png': the file is empty",
    ("", "sky", "train"): "labels.csv:12: must be a file name, found ''",
    ("good.png", "sky", "train"): "",
    ("fine.png", "sea", "test"): "",
}


def test_all_problems_are_listed(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = (photos[0] / "00.png").read_bytes()
    photo = dict.fromkeys(("ok.png", "two.png", "good.png", "fine.png"), content)
    write_photos({**photo, "torn.png": content[:99], "empty.png": b""}, tmp_path / "spoiled")
    write_table(tmp_path / "labels.csv", PROBLEMS, ("image", "label", "split"))
    flags = ["--labels", "labels.csv", "--images", "spoiled", "--output", "mine"]
    assert main(["import-labels", *flags]) == 2
    error = capsys.readouterr().err
    assert "error: 9 problem(s) with labels or photos; nothing was written (--skip_bad leaves these" in error
    assert all(f"\n  {problem}" in error for problem in filter(None, PROBLEMS.values()))
    assert not (tmp_path / "mine").exists()
    assert main(["import-labels", *flags, "--skip_bad"]) == 0
    assert "9 problem(s); these rows, photos and labels are left out:\n" in capsys.readouterr().err
    assert labels_of(tmp_path / "mine") == {"ok.png": {"sky"}, "good.png": {"sky"}, "fine.png": {"sea"}}


def write_photos(contents, folder):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_unusual_names_are_kept_if_utf_8_can_hold_them(photos, tmp_path, capsys):
    content = (photos[0] / "00.png").read_bytes()
    names = ['"q", x.png', "line\nbreak.png", "سیب 🍎.png", "a;b.png", "sub dir/=1+1.png", "no_ending.PNG"]
    write_photos(dict.fromkeys(names, content), tmp_path / "photos")
    given = [name.replace("sub dir/", "./sub dir\\").removesuffix(".PNG") for name in names]
    table = write_table(tmp_path / "labels.csv", [(name, "sky;sea") for name in given])
    flags = ["--labels", str(table), "--images", str(tmp_path / "photos"), "--output", str(tmp_path / "mine")]
    assert main(["import-labels", *flags]) == 0
    assert labels_of(tmp_path / "mine").keys() == set(names)
    write_photos({f"sky/{os.fsdecode(bytes([255]))}.png": content}, tmp_path / "folders")
    assert main(["import-labels", "--labels", str(tmp_path / "folders"), "--output", str(tmp_path / "mine2")]) == 2
    assert "'sky/\\udcff.png' cannot be written as UTF-8; rename the file" in capsys.readouterr().err


def test_an_earlier_import_is_replaced_only_with_force(import_labels, table, photos, tmp_path, capsys):
    assert import_labels(table) == 0
    before = (tmp_path / "mine" / "train.json").read_text()
    assert import_labels(table) == 2
    assert "train.json is there already; --force replaces it" in capsys.readouterr().err
    assert import_labels(table, "--force", "--test_fraction", "1") == 0
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["channel_stats.json", "images", "test.json"]
    assert import_labels(table, "--force") == 0
    assert (tmp_path / "mine" / "train.json").read_text() == before
    assert import_labels(table, "--force", "--images", str(tmp_path / "mine" / "images")) == 0
    assert (tmp_path / "mine" / "images").resolve() == photos[0]
    (tmp_path / "taken" / "images").mkdir(parents=True)
    assert import_labels(table, "--force", output=tmp_path / "taken") == 2
    assert f"images is there and is not {photos[0]}; name another --output" in capsys.readouterr().err


def test_like_takes_vocabulary_and_statistics(import_labels, table, photos, tmp_path, capsys):
    assert import_labels(table) == 0
    rows = [("00.png", "night;nihgt"), ("sub/01.png", "night"), ("02.png", "")]
    other = write_table(tmp_path / "other.csv", rows)
    flags = ["--like", str(tmp_path / "mine"), "--test_fraction", "1"]
    assert import_labels(other, *flags, output=tmp_path / "other") == 2
    assert (
        "other.csv:2: 'nihgt' is not in the vocabulary of 21 labels; did you mean 'night'?" in capsys.readouterr().err
    )
    assert import_labels(other, *flags, "--skip_bad", output=tmp_path / "other") == 0
    test = read_annotations(tmp_path / "other", "custom", "test")
    assert test.labels == read_annotations(tmp_path / "mine", "custom", "train").labels
    assert [[test.labels[c] for c in row.nonzero()[0]] for row in test.targets] == [["night"], ["night"], []]
    assert read_channel_stats(tmp_path / "other") == read_channel_stats(tmp_path / "mine")
    assert "3 photos, 0 for training, 3 for test; 21 labels, 0.67 per photo; 1 photo without labels" in (
        capsys.readouterr().out
    )


def test_rare_labels_are_reported_or_left_out(import_labels, photos, tmp_path, capsys):
    rows = [(name, f"pair{number // 2}") for number, name in enumerate(photos[1])]
    assert import_labels(write_table(tmp_path / "labels.csv", rows)) == 0
    assert "0.50 of the photos are for testing, not 0.2: each label of two photos or more" in capsys.readouterr().out
    rows = [(name, f"common;rare{number}") for number, name in enumerate(photos[1])]
    table = write_table(tmp_path / "labels.csv", rows)
    assert import_labels(table, "--min_images", "2", "--force") == 0
    assert read_annotations(tmp_path / "mine", "custom", "train").labels == ("common",)
    printed = capsys.readouterr().out
    assert "40 labels of fewer than 2 photos left out: rare0, rare1" in printed
    assert "for testing, not" not in printed
    assert import_labels(table, "--min_images", "41", "--force") == 2
    assert "no label has 41 photos (--min_images)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", "nothing.csv"], "--labels nothing.csv: no such file or folder"),
        (["--images", "nothing"], "--images nothing does not exist"),
        (["--images", "labels.csv"], "--images labels.csv is no folder"),
        (["--labels", "photos", "--images", "photos"], "--images goes with a file of labels"),
        (["--labels", "photos", "--output", "photos/out"], "lies in --labels photos, whose folders are labels"),
        (["--labels", "a.json", "--separator", ";"], "go with a table; a.json is none"),
        (["--like", "photos"], "--like photos holds no train.json or test.json"),
        (["--like", "photos", "--min_images", "2"], "--like gives the vocabulary"),
        (["--test_fraction", "0"], "must be above 0 and at most 1, not 0"),
        (["--labels", "one.csv"], "there is one photo; at least two are needed"),
        (["--labels", "bare.csv"], "no photo has a label"),
        (["--labels", "none.csv"], "no photo can be used"),
        (["--images", "empty"], "no photo can be used; the photos must be in empty, --images names another folder:"),
    ],
)
def test_flags_that_cannot_be_used(photos, table, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    write_table(tmp_path / "one.csv", [("00.png", "sky")])
    write_table(tmp_path / "bare.csv", [("00.png", ""), ("02.png", "")])
    write_table(tmp_path / "none.csv", [])
    (tmp_path / "photos").mkdir()
    (tmp_path / "empty").mkdir()
    given = {"--labels": "labels.csv", "--images": str(photos[0]), "--output": "mine"}
    given |= dict(zip(flags[::2], flags[1::2], strict=True))
    if given["--labels"] == "photos" and "--images" not in flags:
        del given["--images"]
    assert main(["import-labels", *[part for pair in given.items() for part in pair]]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
