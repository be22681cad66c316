"""`aia import-labels` writes the files that the annotation tasks and the reference implementation read."""

import csv
import gc
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aia_jax.cli.main import main
from aia_jax.data import scenes
from aia_jax.data.annotation.annotations import read_annotations
from aia_jax.data.annotation.channel_stats import read_channel_stats
from aia_jax.data.image_decoding import decode_image
from tests.helpers.photos import make_photo

NUM_PHOTOS = 40


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """Excludes the objects of earlier tests from garbage collection, which runs after each reading of photos."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of scenes as PNG files, and a dict from file name to labels."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    labelled = {}
    for number in range(NUM_PHOTOS):
        scene = scenes.draw(3, number, 32)
        name = f"sub/{number:02}.png" if number % 2 else f"{number:02}.png"
        Image.fromarray(scene.image).save(folder / name)
        labelled[name] = scene.labels
    return folder, labelled


@pytest.fixture
def write_table(tmp_path):
    def write(rows, header=("image", "labels"), name="labels.csv"):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        return tmp_path / name

    return write


@pytest.fixture
def table(photos, write_table):
    return write_table([(name, ";".join(labels)) for name, labels in photos[1].items()])


@pytest.fixture
def import_labels(photos, tmp_path, capsys):
    """Runs the command, checks its exit code, and returns what it printed."""

    def run(labels, *flags, images=photos[0], output=tmp_path / "mine", code=0):
        images = [] if labels.is_dir() else ["--images", str(images)]
        assert main(["import-labels", "--labels", str(labels), *images, "--output", str(output), *flags]) == code
        return capsys.readouterr()

    return run


@pytest.fixture
def split(tmp_path):
    """Reads a split of an output."""
    return lambda name, output="mine": read_annotations(tmp_path / output, "custom", name)


def labels_of(*parts):
    """Returns a dict from the name of each photo to its labels."""
    return {
        name: {part.labels[column] for column in row.nonzero()[0]}
        for part in parts
        for name, row in zip(part.image_names, part.targets, strict=True)
    }


def test_the_files_have_the_photos_labels_and_statistics_of_the_table(import_labels, table, photos, split, tmp_path):
    folder, labelled = photos
    printed = import_labels(table)
    train, test = split("train"), split("test")
    assert labels_of(train, test) == {name: set(labels) for name, labels in labelled.items()}
    assert (tmp_path / "mine" / "images").resolve() == folder
    assert train.labels == test.labels == tuple(sorted(set().union(*labelled.values())))
    assert abs(len(test) - NUM_PHOTOS / 5) <= 3
    for path in train.image_paths:
        Image.open(path).load()
    assert json.loads((tmp_path / "mine" / "train.json").read_text()).keys() == {"labels", "samples"}
    pixels = np.stack([decode_image(path.read_bytes(), 224) for path in train.image_paths]).reshape(-1, 3) / 255
    stats = pixels.mean(axis=0), pixels.std(axis=0)
    np.testing.assert_allclose(read_channel_stats(tmp_path / "mine"), stats, atol=1e-4)
    assert f"{NUM_PHOTOS} photos, {len(train)} for training, {len(test)} for test; 21 labels, " in printed.out
    assert f"--config.data.root={shlex.quote(str(tmp_path / 'mine'))}\n" in printed.out
    assert "reading photos: 100%" in printed.err


def test_the_split_depends_on_the_seed_and_the_fraction(import_labels, table, split):
    names = []
    for flags in ([], ["--seed", "2"], ["--test_fraction", "0.5"]):
        import_labels(table, *flags, "--force")
        names.append(split("test").image_names)
    assert names[0] != names[1]
    assert abs(len(names[2]) - NUM_PHOTOS / 2) <= 2


def test_coco_and_folders_give_the_same_as_a_table(import_labels, table, photos, split, tmp_path):
    folder, labelled = photos
    import_labels(table, output=tmp_path / "of_table")
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
    import_labels(tmp_path / "instances.json", output=tmp_path / "of_coco")
    for name, labels in labelled.items():
        for label in labels:
            (tmp_path / "folders" / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / "folders" / label / os.path.basename(name)).symlink_to(folder / name)
    import_labels(tmp_path / "folders", output=tmp_path / "of_folders")
    files = [(tmp_path / output / "train.json").read_text() for output in ("of_table", "of_coco")]
    assert files[0] == files[1]
    found = labels_of(split("train", "of_folders"), split("test", "of_folders"))
    by_name = {os.path.basename(name): labels for name, labels in found.items()}
    assert by_name == {os.path.basename(name): set(labels) for name, labels in labelled.items()}


def test_splits_of_the_list_are_kept(import_labels, write_table, photos, split):
    header = ("image", "label", "split")
    rows = [(name, labels[0], ("train", "val", "test")[n % 3]) for n, (name, labels) in enumerate(photos[1].items())]
    printed = import_labels(write_table(rows, header))
    assert set(split("test").image_names) == {name for name, _, part in rows if part == "test"}
    assert "photos of the validation split are for training" in printed.out
    table = write_table([row for row in rows if row[2] != "test"], header)
    import_labels(table, "--force")
    assert set(split("test").image_names) == {name for name, _, part in rows if part == "val"}
    refused = import_labels(table, "--force", "--test_fraction", "0.5", code=2)
    assert "gives the splits itself; leave out --test_fraction" in refused.err
    refused = import_labels(write_table(rows[:1], header), "--force", code=2)
    assert "puts all photos into train; some are needed for test. --test_fraction 0.2" in refused.err
    import_labels(write_table([row for row in rows if row[2] == "train"], header), "--force", "--test_fraction", "0.2")


def test_folders_of_photos_give_the_splits(import_labels, write_table, split, tmp_path):
    names = [f"{part}/{number}.jpg" for part in ("Train", "test") for number in range(2)]
    for seed, name in enumerate(names):
        (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
        make_photo(tmp_path / "parts" / name, seed)
    table = write_table([(name, "sky") for name in names])
    assert "the folders of the photos give the splits" in import_labels(table, images=tmp_path / "parts").out
    assert split("test").image_names == ("test/0.jpg", "test/1.jpg")
    import_labels(table, "--force", "--test_fraction", "0.5", images=tmp_path / "parts")
    assert len(split("test").image_names) == 2


def test_copies_of_a_photo_are_never_in_both_splits(import_labels, write_table, split, tmp_path):
    content = {f"{number}.png": scenes.draw(5, number // 2, 32).image for number in range(20)}  # each photo twice
    (tmp_path / "twice").mkdir()
    for name, image in content.items():
        Image.fromarray(image).save(tmp_path / "twice" / name)
    rows = [(name, ("sky", "sea")[number % 4 > 1]) for number, name in enumerate(content)]
    printed = import_labels(write_table(rows, ("image", "label")), images=tmp_path / "twice")
    assert "10 photos with the same pixels as another photo; training and test share none" in printed.out
    parts = [{int(name[:-4]) // 2 for name in split(part).image_names} for part in ("train", "test")]
    assert sum(map(len, parts)) == 10
    assert parts[1]
    rows = [(name, label, ("train", "test")[number in (1, 6, 7)]) for number, (name, label) in enumerate(rows)]
    printed = import_labels(write_table(rows, ("image", "label", "split")), "--force", images=tmp_path / "twice")
    assert set(split("test").image_names) == {"1.png", "6.png", "7.png"}
    assert "1 test photo of 3 are also training photos, under another name, so the test results" in printed.out
    refused = import_labels(write_table([row[:2] for row in rows[:2]]), "--force", images=tmp_path / "twice", code=2)
    assert "there is one photo; at least two are needed, with different pixels, for training and test" in refused.err


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


def test_all_problems_are_listed(import_labels, write_table, photos, split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = (photos[0] / "00.png").read_bytes()
    photo = dict.fromkeys(("ok.png", "two.png", "good.png", "fine.png"), content)
    write_photos({**photo, "torn.png": content[:99], "empty.png": b""}, tmp_path / "spoiled")
    table, images = write_table(PROBLEMS, ("image", "label", "split")), Path("spoiled")
    error = import_labels(table, images=images, code=2).err
    assert "error: 9 problem(s) with labels or photos; nothing was written (--skip_bad leaves these" in error
    assert all(f"\n  {problem}" in error for problem in filter(None, PROBLEMS.values()))
    assert not (tmp_path / "mine").exists()
    printed = import_labels(table, "--skip_bad", images=images)
    assert "9 problem(s); these rows, photos and labels are left out:\n" in printed.err
    expected = {"ok.png": {"sky"}, "good.png": {"sky"}, "fine.png": {"sea"}}
    assert labels_of(split("train"), split("test")) == expected


def write_photos(contents, folder):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_unusual_names_are_kept_if_utf_8_can_encode_them(import_labels, write_table, photos, split, tmp_path):
    names = ['"q", x.png', "line\nbreak.png", "سیب 🍎.png", "a;b.png", "sub dir/=1+1.png", "no_ending.PNG"]
    contents = [(photos[0] / name).read_bytes() for name in photos[1]]
    write_photos(dict(zip(names, contents, strict=False)), tmp_path / "photos")
    given = [name.replace("sub dir/", "./sub dir\\").removesuffix(".PNG") for name in names]
    import_labels(write_table([(name, "sky;sea") for name in given]), images=tmp_path / "photos")
    assert labels_of(split("train"), split("test")).keys() == set(names)
    write_photos({f"sky/{os.fsdecode(bytes([255]))}.png": contents[0]}, tmp_path / "folders")
    refused = import_labels(tmp_path / "folders", output=tmp_path / "mine2", code=2)
    assert "'sky/\\udcff.png' cannot be written as UTF-8; rename the file" in refused.err


def test_an_earlier_import_is_replaced_only_with_force(import_labels, table, photos, tmp_path):
    mine = tmp_path / "mine"
    import_labels(table)
    before = (mine / "train.json").read_text()
    assert "train.json is there already; --force replaces it" in import_labels(table, code=2).err
    import_labels(table, "--force", "--test_fraction", "1")
    assert sorted(path.name for path in mine.iterdir()) == ["channel_stats.json", "images", "test.json"]
    import_labels(table, "--force")
    assert (mine / "train.json").read_text() == before
    import_labels(table, "--force", images=mine / "images")
    assert (mine / "images").resolve() == photos[0]
    (tmp_path / "taken" / "images").mkdir(parents=True)
    refused = import_labels(table, "--force", output=tmp_path / "taken", code=2)
    assert f"images is there and is not {photos[0]}; name another --output" in refused.err


def test_like_takes_vocabulary_and_statistics(import_labels, write_table, table, split, tmp_path):
    import_labels(table)
    rows = [("00.png", "night;nihgt"), ("sub/01.png", "night"), ("02.png", "")]
    other, output = write_table(rows, name="other.csv"), tmp_path / "other"
    flags = ["--like", str(tmp_path / "mine"), "--test_fraction", "1"]
    refused = import_labels(other, *flags, output=output, code=2)
    assert "other.csv:2: 'nihgt' is not in the vocabulary of 21 labels; did you mean 'night'?" in refused.err
    printed = import_labels(other, *flags, "--skip_bad", output=output)
    test = split("test", "other")
    assert test.labels == split("train").labels
    assert list(labels_of(test).values()) == [{"night"}, {"night"}, set()]
    assert read_channel_stats(output) == read_channel_stats(tmp_path / "mine")
    expected = "3 photos, 0 for training, 3 for test; 21 labels, 0.67 per photo; 1 photo without labels"
    assert expected in printed.out


def test_rare_labels_are_reported_or_left_out(import_labels, write_table, photos, split):
    table = write_table((name, f"common;rare{number}") for number, name in enumerate(photos[1]))
    printed = import_labels(table, "--min_images", "2", "--force")
    assert split("train").labels == ("common",)
    assert "40 labels of fewer than 2 photos left out: rare0, rare1" in printed.out
    refused = import_labels(table, "--min_images", "41", "--force", code=2)
    assert "no label has 41 photos (--min_images)" in refused.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", "nothing.csv"], "--labels nothing.csv: no such file or folder"),
        (["--images", "nothing"], "--images nothing does not exist"),
        (["--images", "labels.csv"], "--images labels.csv is no folder"),
        (["--labels", "photos", "--images", "photos"], "--images goes with a file of labels"),
        (["--labels", "photos", "--output", "photos/out"], "lies in --labels photos, whose folders are labels"),
        (["--labels", "a.json", "--separator", ";"], "--separator goes with a table; a.json is none"),
        (["--like", "photos"], "--like photos holds no train.json or test.json"),
        (["--like", "photos", "--min_images", "2"], "--like gives the vocabulary"),
        (["--test_fraction", "0"], "--test_fraction must be above 0 and at most 1, not 0"),
        (["--labels", "one.csv"], "there is one photo; at least two are needed"),
        (["--labels", "bare.csv"], "no photo has a label"),
        (["--labels", "none.csv"], "no photo can be used"),
        (["--images", "empty"], "no photo can be used; the photos must be in empty, --images names another folder:"),
    ],
)
def test_unusable_flags_are_refused(photos, write_table, table, tmp_path, monkeypatch, failing, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    write_table([("00.png", "sky")], name="one.csv")
    write_table([("00.png", ""), ("02.png", "")], name="bare.csv")
    write_table([], name="none.csv")
    for name in ("00.png", "02.png"):
        (tmp_path / name).symlink_to(photos[0] / name)
    for name in ("photos", "empty"):
        (tmp_path / name).mkdir()
    assert message in failing("import-labels", "--labels", "labels.csv", "--output", "mine", *flags)
    assert not (tmp_path / "mine").exists()


def test_labels_are_shown_and_checked_before_anything_is_written(import_labels, write_table, photos, tmp_path):
    names = list(photos[1])[:4]
    table = write_table(zip(names, ("sky|sea", "Sky|nan", "sky", "cafe\u0301|caf\u00e9"), strict=True))
    printed = import_labels(table, code=2)
    assert f"4 of 4 photos with their labels:\n  {names[0]:<10}  sea | sky\n" in printed.out
    assert "'Sky' (1 photo), 'sky' (2 photos) differ only in upper and lower case" in printed.err
    assert "'caf\u00e9' was written in 2 Unicode forms; it is one label" in printed.err
    assert "labels.csv:3: the label 'nan' (1 time) stands for an empty cell; --accept_labels accepts it" in printed.err
    assert not (tmp_path / "mine").exists()
    assert "nan" in import_labels(table, "--accept_labels").out
    assert "nan" not in import_labels(table, "--skip_bad", "--force").out


def test_weights_of_rows_are_asked_about(import_labels, write_table, photos, split):
    names = list(photos[1])[:2]
    rows = [(name, label, (n + m) % 2) for n, name in enumerate(names) for m, label in enumerate(("sky", "sea"))]
    table = write_table(rows, ("ImageID", "LabelName", "Confidence"))
    assert '--rows "Confidence = 1": reads 2 of 4 rows' in import_labels(table, code=2).err
    import_labels(table, "--rows", "Confidence = 1", "--rows", "Confidence > 0")
    assert labels_of(split("train"), split("test")) == {names[0]: {"sea"}, names[1]: {"sky"}}
