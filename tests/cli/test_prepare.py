"""`aia prepare` on small data sets of the same form as the public ones, from a server on this machine."""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import types
from pathlib import Path

import pytest

from aia_jax.cli.main import main
from aia_jax.data.annotation.annotations import FOLDERS, read_annotations
from aia_jax.data.annotation.datasets import load_split
from aia_jax.data.public import acquisition
from aia_jax.data.public.download import git_blob_id
from aia_jax.data.public.public_datasets import PUBLIC_DATASETS, RemoteFile
from tests.conftest import SHARED_DATASETS
from tests.helpers.file_server import Served, serving, zip_file
from tests.helpers.photos import LABELS, data_config, make_photo

NUMBERS = {"train": range(1, 7), "test": range(7, 10)}


def annotations(split: str) -> bytes:
    samples = [{"image_name": f"{n}.jpg", "image_labels": [LABELS[n % 3], LABELS[(n + 1) % 3]]} for n in NUMBERS[split]]
    return json.dumps({"samples": samples, "labels": LABELS}).encode()


INDICES = {f"{n}.jpg": [n % 3, (n + 1) % 3] for n in range(1, 10)}
SSGRL = {
    "ssgrl/train_list_500.txt": "".join(f"{n}.jpg\n" for n in NUMBERS["train"]).encode(),
    "ssgrl/test_list_500.txt": "".join(f"{n}.jpg\n" for n in NUMBERS["test"]).encode(),
    "ssgrl/vg_category_500_labels_index.json": json.dumps(INDICES).encode(),
    "vg500_vocabulary.txt": "\n".join(LABELS).encode(),
}
ANNOTATIONS = {"corel5k": {f"{split}.json": annotations(split) for split in NUMBERS}, "vg500": SSGRL}


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("photos")
    return {f"{n}.jpg": make_photo(folder / f"{n}.jpg", n).read_bytes() for n in range(1, 10)}


@pytest.fixture
def server(tmp_path, monkeypatch, photos):
    """Small public data sets of the same names, on a server; the current directory is empty."""
    monkeypatch.chdir(tmp_path)
    with serving(monkeypatch) as running:

        def served(file: RemoteFile, content: bytes, **facts: object) -> RemoteFile:
            running.files[file.path] = Served(content)
            return dataclasses.replace(file, url=running.url(file.path), **facts)

        for name, contents in ANNOTATIONS.items():
            files, archives = [], []
            for file in PUBLIC_DATASETS[name].annotations:
                content = contents[file.path]
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                files.append(served(file, content, git_blob=blob))
            for part, file in enumerate(PUBLIC_DATASETS[name].archives):
                members = {f"VG_100K/{n}.jpg": photos[f"{n}.jpg"] for n in range(1, 10) if n % 2 == part}
                content = zip_file({"VG_100K/": b"", "VG_100K/99.jpg": b"?", **members})
                archives.append(served(file, content, num_bytes=len(content)))
            facts = {"num_images": {split: len(NUMBERS[split]) for split in NUMBERS}, "num_labels": 3}
            facts |= {"labels_per_image": 2.0, "annotations": tuple(files), "archives": tuple(archives)}
            monkeypatch.setitem(PUBLIC_DATASETS, name, dataclasses.replace(PUBLIC_DATASETS[name], **facts))
        yield running


@pytest.fixture
def kaggle(monkeypatch, photos):
    """A replacement of kagglehub that unpacks `files` into the cache. tests/data/public tests the real package."""
    files = {f"Corel-5k/images/{name}": content for name, content in photos.items()}
    files |= {"Corel-5k/images/99.jpg": b"?", "Corel-5k/train.json": b"other", "thumbnails/1.jpg": b"?"}

    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        fake.calls.append(handle)
        folder = fake.folder or Path(os.environ["KAGGLEHUB_CACHE"], "datasets", handle, "versions", "1")
        return str(write_files(folder, files))

    fake = types.SimpleNamespace(dataset_download=dataset_download, files=files, calls=[], folder=None)
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    return fake


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def images(folder: str) -> set[str]:
    return {path.name for path in Path("datasets", folder, "images").iterdir()}


def test_corel5k(server, kaggle, capsys):
    assert main(["prepare", "corel5k"]) == 0
    out = capsys.readouterr().out
    assert "train       6 images, 3 labels, 2.00 per image" in out
    assert "photos      9 of 9" in out
    assert out.endswith("complete, as published; --config.data.root=datasets\n")
    assert kaggle.calls == ["parhamsalar/corel5k"]
    assert images("Corel-5k") == {f"{n}.jpg" for n in range(1, 10)}
    assert Path("datasets/Corel-5k/train.json").read_bytes() == annotations("train")
    assert [path.name for path in Path("datasets/Corel-5k/downloads").iterdir()] == ["prepare.lock"]
    assert main(["prepare", "corel5k"]) == 0
    assert len(kaggle.calls) == 1  # nothing is downloaded twice
    assert len(server.ranges) == 2


def test_only_missing_and_unreadable_photos_are_replaced(server, kaggle, photos, capsys):
    other = make_photo(Path("datasets/Corel-5k/images/3.jpg"), 77).read_bytes()
    folder = write_files(Path("datasets/Corel-5k/images"), {"4.jpg": b"<html>", "5.jpg": b""})
    write_files(folder.parent, {"test.json": annotations("test")})
    del kaggle.files["Corel-5k/images/8.jpg"]
    assert main(["prepare", "corel5k"]) == 2
    out, error = capsys.readouterr()
    assert "2 photos cannot be opened:\n    datasets/Corel-5k/images/4.jpg: not an image of a known format" in out
    assert "images/5.jpg: the file is empty" in out
    assert "images/                                  1 photos: 8.jpg; https://www.kaggle.com" in error
    assert (folder / "3.jpg").read_bytes() == other
    assert all((folder / name).read_bytes() == photos[name] for name in ("4.jpg", "5.jpg", "9.jpg"))


def test_where_kaggle_has_the_files_at_hand_they_are_copied(server, kaggle, tmp_path, photos):
    kaggle.folder = tmp_path / "kaggle" / "input"
    assert main(["prepare", "corel5k"]) == 0
    for path in (Path("datasets/Corel-5k/images/1.jpg"), kaggle.folder / "Corel-5k/images/1.jpg"):
        assert path.read_bytes() == photos["1.jpg"]


def test_without_kagglehub(server, monkeypatch, failing):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    message = failing("prepare", "corel5k")
    assert "pip install kagglehub" in message
    assert "https://www.kaggle.com/settings/api" in message
    folder, photos = message.splitlines()[-2:]
    assert folder == "  datasets/Corel-5k/"
    assert photos.startswith("    images/                                  9 photos: 1.jpg, 2.jpg, 3.jpg, ...; https")
    assert Path("datasets/Corel-5k/train.json").is_file()  # which needs no Kaggle


def test_vg500(server, photos, capsys):
    assert main(["prepare", "vg500"]) == 0
    assert "downloads (0.0 GB) is no longer needed" in capsys.readouterr().out
    assert images("VG-500") == set(photos)
    for split in NUMBERS:
        found, published = read_annotations("datasets", "vg500", split), json.loads(annotations(split))
        named = [{found.labels[column] for column in row.nonzero()[0]} for row in found.targets]
        assert list(found.labels) == published["labels"]
        samples = [(sample["image_name"], set(sample["image_labels"])) for sample in published["samples"]]
        assert list(zip(found.image_names, named, strict=True)) == samples
    shutil.rmtree("datasets/VG-500/downloads")
    asked = len(server.ranges)
    assert main(["prepare", "vg500", "--check"]) == 0
    assert main(["prepare", "vg500"]) == 0
    assert len(server.ranges) == asked


def test_files_of_a_user_are_used_and_stay_where_they_are(server, photos):
    write_files(Path("datasets/VG-500/data/VG"), {Path(name).name: content for name, content in SSGRL.items()})
    distributed = {f"VG_100K{'_2' * (int(name[0]) % 2)}/{name}": content for name, content in photos.items()}
    write_files(Path("datasets/VG-500"), distributed)
    assert main(["prepare", "vg500"]) == 0
    assert read_annotations("datasets", "vg500", "train").image_names == tuple(f"{n}.jpg" for n in range(1, 7))
    assert not Path("datasets/VG-500/images").exists()
    assert server.ranges == []


def test_an_archive_of_a_user_is_used(server):
    content = server.files.pop("downloads/images.zip").content
    write_files(Path("datasets/VG-500/downloads"), {"images.zip": content})
    assert main(["prepare", "vg500"]) == 0


def test_an_interrupted_preparation_is_continued(server, photos, monkeypatch, failing):
    write, written = acquisition.write_bytes, []
    last = 6  # photos: in the second archive

    def write_some(path, content):
        if len(written) == last:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr(acquisition, "write_bytes", write_some)
    message = failing("prepare", "vg500", code=130)
    assert "downloaded files are kept in datasets/VG-500, and the same command continues" in message
    assert images("VG-500") == set(written)
    asked, last = len(server.ranges), None
    assert main(["prepare", "vg500"]) == 0
    assert len(server.ranges) == asked  # both archives are there
    assert set(written[6:]) == set(photos) - set(written[:6])


def test_a_disk_without_room_for_archives_and_photos(server, monkeypatch, failing):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4000))
    message = failing("prepare", "vg500")
    assert "the disk of datasets/VG-500 is full: about 0.0 MB are needed there; --root names another place" in message
    assert len(server.ranges) == len(SSGRL)


def test_no_network(server, failing):
    server.server_close()
    message = failing("prepare", "vg500", "--root=elsewhere")
    assert "/ssgrl/train_list_500.txt cannot be downloaded: no " in message
    assert "`aia prepare vg500 --root elsewhere` downloads what is missing; or put there by hand\n" in message
    tree = [line.split()[0] for line in message.splitlines()[-8:]]
    assert tree == ["elsewhere/VG-500/", *SSGRL, "images/", "downloads/images.zip", "downloads/images2.zip"]
    assert "9 photos" in message


def test_check_writes_nothing(server, kaggle, tmp_path, failing):
    message = failing("prepare", "corel5k", "--check")
    assert "train.json                               http://127.0.0.1" in message
    assert not list(tmp_path.iterdir())
    assert not server.ranges


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["samples"].pop(), "test: 2 images; the published number is 3"),
        (lambda d: d["labels"].append("sea"), "test: 4 labels; the published number is 3"),
        (lambda d: d["labels"].reverse(), "train and test have different labels, or in another order"),
        (lambda d: d["samples"][0].update(image_name="1.jpg"), "1 images are in train and in test: 1.jpg"),
        (lambda d: d["samples"][0].update(image_labels=[]), "1.78 labels per image; the published mean is 2.0"),
        (lambda d: d["samples"][0].update(image_labels=["fog"]), "'fog' is not in the vocabulary"),
        (lambda d: d.pop("samples"), "'samples' must be a list, found nothing"),
    ],
)
def test_annotations_that_are_not_as_published(server, kaggle, capsys, change, text):
    document = json.loads(annotations("test"))
    change(document)
    content = json.dumps(document).encode()
    write_files(Path("datasets/Corel-5k"), {"train.json": annotations("train"), "test.json": content})
    for flags in (["--check"], []):
        assert main(["prepare", "corel5k", *flags]) == 2
        captured = capsys.readouterr()
        assert text in captured.out
        assert "datasets/Corel-5k is not complete, or not as published; see above" in captured.err
    assert Path("datasets/Corel-5k/test.json").read_bytes() == content  # a user's file


def test_the_resized_copy_is_the_one_that_training_takes(server, kaggle, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AIA_JAX_CACHE", str(tmp_path / "cache"))
    assert main(["prepare", "corel5k", "--image_size=16"]) == 0
    assert "test: 3 images of 16 x 16 pixels" in capsys.readouterr().out
    copies = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("images.npy")}
    assert len(copies) == 2
    load_split(data_config(Path("datasets"), tmp_path / "cache"), "train", 16)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("images.npy")} == copies


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["mnist"], "invalid choice: 'mnist'"),
        (["corel5k", "--check", "--image_size=16"], "give one of them"),
        (["corel5k", "--image_size=0"], "must be at least 1"),
        (["corel5k", "--root=file"], "cannot be written: Not a directory; --root names another place"),
    ],
)
def test_bad_flags(server, argv, text, failing):
    Path("file").write_text("")
    assert text in failing("prepare", *argv)


@pytest.mark.parametrize(
    ("name", "code", "texts"),
    [
        ("corel5k", 0, ["train   4,500 images, 260 labels, 3.38 per image", "photos  4,999 of 4,999"]),
        ("espgame", 2, ["20,770 photos are missing: 15001.jpg"]),
        ("iaprtc12", 2, ["19,627 photos are missing: 25.jpg"]),
        ("vg500", 2, ["10,000 photos are missing: 2328403.jpg"]),
    ],
)
def test_the_real_data_sets(name, code, texts, capsys):
    if not (SHARED_DATASETS / FOLDERS[name] / "test.json").is_file():
        pytest.skip(f"the annotations of {FOLDERS[name]} are not on this machine")
    for file in PUBLIC_DATASETS[name].annotations:
        path = SHARED_DATASETS / FOLDERS[name] / file.path
        assert not path.is_file() or git_blob_id(path) == file.git_blob, path
    assert main(["prepare", name, "--root", str(SHARED_DATASETS), "--check"]) == code
    captured = capsys.readouterr()
    assert all(text in captured.out for text in texts)
    assert "published are" not in captured.out
    assert ("put there by hand" in captured.err) == (code == 2)
