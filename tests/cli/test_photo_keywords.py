"""Keywords for photo programs: `aia annotate --xmp`, `--embed` and `--undo`, and `aia import-labels --xmp`."""

import io
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from aia_jax.cli.main import main
from aia_jax.data.photo_metadata import photo_xmp
from aia_jax.data.photo_metadata.embedded import read_embedded
from aia_jax.data.photo_metadata.keywords import FIELDS, SUBJECT
from aia_jax.data.photo_metadata.photo_xmp import embedded_keywords
from aia_jax.data.photo_metadata.xmp_packet import XmpPacket
from tests.helpers.sidecars import DIGIKAM, LIGHTROOM

NAMES = ("a.jpg", "ä|b, c.png", "sub/<d>&.webp", "sub/e.tif", "f.gif")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def annotate(annotator, photos, tmp_path):
    def run(*flags, top="2", output="out"):
        model = ("--workdir", str(annotator), "--threshold", "0", "--top", top, "--output", str(tmp_path / output))
        return main(["annotate", "--images", str(photos), *model, *flags])

    return run


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def subjects(path):
    return XmpPacket(path.read_bytes()).values(SUBJECT)


def chosen(tmp_path):
    lines = map(json.loads, (tmp_path / "out" / "annotations.jsonl").read_text().splitlines())
    return {line["image"]: tuple(label["label"] for label in line["labels"]) for line in lines}


def test_sidecars_get_the_labels_a_second_call_replaces_them_and_undo_takes_them_back(
    annotate, photos, tmp_path, capsys
):
    (photos / "a.jpg.xmp").write_text(LIGHTROOM)
    (photos / "sub" / "e.xmp").write_text(DIGIKAM)  # Its keywords must also stand in a new e.tif.xmp.
    before = files(photos)
    assert annotate("--xmp") == 0
    assert "keywords: 5 files written" in capsys.readouterr().out
    labels = chosen(tmp_path)
    for name in NAMES[1:3]:
        packet = XmpPacket((photos / f"{name}.xmp").read_bytes())
        paths = [("auto", label) for label in labels[name]]
        assert [packet.values(field) for field in FIELDS] == [
            tuple("|".join(path) for path in paths),
            *[tuple("/".join(path) for path in paths)] * 2,
            labels[name],
        ]
    assert subjects(photos / "a.jpg.xmp") == ("Animals", "Dog", "beach", *labels["a.jpg"])
    assert subjects(photos / "sub" / "e.tif.xmp") == ("Zürich", "Zoë", *labels["sub/e.tif"])
    assert {name: content for name, content in files(photos).items() if name in before and name != "a.jpg.xmp"} == {
        name: content for name, content in before.items() if name != "a.jpg.xmp"
    }
    written = files(photos)
    assert annotate("--xmp") == 0
    assert "0 files written, 5 need no change" in capsys.readouterr().out
    assert files(photos) == written
    assert annotate("--xmp", "--parent", "", top="1", output="other") == 0
    assert subjects(photos / "a.jpg.xmp") == ("Animals", "Dog", "beach", labels["a.jpg"][0])
    assert main(["annotate", "--images", str(photos), "--undo"]) == 0
    assert "keywords: 5 files restored" in capsys.readouterr().out
    assert files(photos) == before


def test_photos_get_the_labels_inside_and_undo_takes_them_back(annotate, photos, tmp_path, capsys):
    def pixels():
        return [Image.open(io.BytesIO((photos / name).read_bytes())).tobytes() for name in NAMES]

    before, before_pixels = files(photos), pixels()
    os.utime(photos / "a.jpg", (1, 1))
    assert annotate("--embed", "--keep_time") == 0
    captured = capsys.readouterr()
    assert "keywords: 4 files written" in captured.out
    assert "f.gif: XMP can be written into JPEG, PNG, WebP and TIFF files only" in captured.err
    assert (photos / "a.jpg").stat().st_mtime == 1
    assert pixels() == before_pixels
    for name in NAMES[:4]:
        assert XmpPacket(read_embedded(photos / name).xmp).values(SUBJECT) == chosen(tmp_path)[name]
        assert embedded_keywords(photos / name) == ([], "")  # none of a person
    assert main(["annotate", "--images", str(photos), "--undo"]) == 0
    restored = files(photos)
    assert [restored[name] for name in ("a.jpg", NAMES[1])] == [before[name] for name in ("a.jpg", NAMES[1])]
    assert [read_embedded(photos / name).xmp for name in NAMES] == [b""] * len(NAMES)


def test_sidecars_that_cannot_be_used_are_listed_and_stay_as_they_are(annotate, photos, capsys):
    bad = {
        "a.jpg.xmp": b"<x>",
        "ä|b, c.png.xmp": b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        "sub/e.tif.xmp": LIGHTROOM.encode(),
        "f.gif.xmp": LIGHTROOM.replace("beach", "Düne").encode("latin-1"),
    }
    for name, content in bad.items():
        (photos / name).write_bytes(content)
    (photos / "sub" / "e.tif.xmp").chmod(0o444)
    assert annotate("--xmp") == 0
    captured = capsys.readouterr()
    assert "keywords: 1 file written" in captured.out
    for problem in ("a.jpg.xmp: its XMP is not XML", "entities", "e.tif.xmp: it is read-only", "f.gif.xmp: its XMP is"):
        assert problem in captured.err
    assert {name: (photos / name).read_bytes() for name in bad} == bad
    os.truncate(photos / "a.jpg.xmp", 100_000_000)
    (photos / "sub" / "<d>&.webp.xmp").unlink()
    (photos / "sub" / "<d>&.webp.xmp").mkdir()
    (photos / "ä|b, c.png.xmp").write_bytes(b"")
    assert annotate("--xmp") == 2
    captured = capsys.readouterr()
    for problem in ("no file can be written", "more than 16 MiB", "it is not a file", "it is empty"):
        assert problem in captured.err


def test_a_name_that_is_too_long_is_listed_and_sidecars_below_a_link_to_a_folder_are_taken_back(
    annotate, photos, tmp_path, capsys
):
    (photos / "f.gif").rename(photos / ("f" * 251 + ".gif"))
    (photos / "sub").rename(tmp_path / "elsewhere")
    (photos / "sub").symlink_to(tmp_path / "elsewhere")
    before = files(tmp_path / "elsewhere")
    assert annotate("--xmp") == 0
    captured = capsys.readouterr()
    assert "keywords: 4 files written" in captured.out
    assert "ff.gif.xmp: it cannot be written: File name too long" in captured.err
    assert len(files(tmp_path / "elsewhere")) == 4
    assert main(["annotate", "--images", str(photos), "--undo"]) == 0
    assert "keywords: 4 files restored" in capsys.readouterr().out
    assert files(tmp_path / "elsewhere") == before


def test_a_sidecar_that_another_program_writes_meanwhile_is_merged_with_its_new_content(annotate, photos, monkeypatch):
    path, replace = photos / "a.jpg.xmp", photo_xmp._replace

    def slow(target, packet, before):
        if target == path and not path.exists():
            path.write_text(LIGHTROOM)
        replace(target, packet, before)

    monkeypatch.setattr(photo_xmp, "_replace", slow)
    assert annotate("--xmp") == 0
    assert subjects(path)[:3] == ("Animals", "Dog", "beach")
    assert b"crs:ToneCurvePV2012" in path.read_bytes()


def test_a_signal_stops_between_two_photos_and_the_same_command_continues(annotate, photos, monkeypatch, capsys):
    change = photo_xmp.change_sidecar

    def interrupt(path, how):
        os.kill(os.getpid(), signal.SIGINT)
        return change(path, how)

    monkeypatch.setattr("aia_jax.inference.keyword_output.change_sidecar", interrupt)
    assert annotate("--xmp") == 130
    assert "stopped with 1 file written; the same command continues" in capsys.readouterr().err
    monkeypatch.undo()
    assert annotate("--xmp") == 0
    assert "4 files written, 1 need no change" in capsys.readouterr().out


def test_a_mapping_file_gives_keywords_and_ignores_labels(annotate, photos, tmp_path, capsys):
    (photos / "a.jpg.xmp").write_text(LIGHTROOM.replace("Animals", "Kinds").replace("Dog", "Circle"))
    mapping = tmp_path / "keywords.yaml"
    assert annotate("--write-mapping", str(mapping)) == 0
    assert "1 with the keyword that your photos have" in capsys.readouterr().out
    text = mapping.read_text()
    assert "circle: Kinds|Circle" in text
    mapping.write_text(text.replace("ignore: []", "ignore: [blue]"))
    assert annotate("--xmp", "--mapping", str(mapping), top="100") == 0
    packet = XmpPacket((photos / "f.gif.xmp").read_bytes())
    paths = packet.values(next(iter(FIELDS)))
    assert "auto|Kinds|Circle" in paths
    assert not [path for path in paths if "blue" in path]
    mapping.write_text("labels: {circel: X, circle: Round/Oval}")
    assert annotate("--xmp", "--mapping", str(mapping), top="100") == 0
    captured = capsys.readouterr()
    assert "the model has no label 'circel'; did you mean 'circle'?" in captured.err
    assert (
        "1 keyword with | or /; fields that separate levels by this sign get - instead:\n  Round/Oval" in captured.err
    )


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--sidecar", "photo.xmp"), "--sidecar goes with --xmp"),
        (("--keep_time",), "--keep_time goes with --embed"),
        (("--xmp", "--parent", "a||b"), "expected levels separated by |"),
        (("--xmp", "--mapping", "absent.yaml"), "absent.yaml cannot be read"),
    ],
)
def test_flags_that_cannot_be_used_are_refused_before_the_photos_are_read(annotate, tmp_path, flags, problem, capsys):
    assert annotate(*flags) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_photos_with_one_sidecar_do_not_overwrite_each_other(annotate, photos, tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(photos / "a.png")
    assert annotate("--xmp", "--sidecar", "photo.xmp") == 0
    assert "a.xmp: a.png and a.jpg share it" in capsys.readouterr().err
    assert subjects(photos / "a.xmp") == chosen(tmp_path)["a.jpg"]


def test_keywords_of_photos_become_labels_without_the_automatic_ones(annotate, photos, tmp_path, capsys):
    (photos / "a.jpg.xmp").write_text(LIGHTROOM)
    (photos / "sub" / "e.xmp").write_text(DIGIKAM)
    (photos / "f.gif.xmp").write_text(LIGHTROOM.replace("Animals", "Pets").replace("Dog", "doggy"))
    (photos / "sub" / "<d>&.webp.xmp").write_text(LIGHTROOM.replace("Animals", "auto").replace("beach", "auto"))
    assert annotate("--xmp") == 0
    (tmp_path / "k.yaml").write_text("labels: {dog: {path: Animals|Dog, synonyms: [doggy]}}\nignore: [People]")

    def imported(*flags):
        flags = ("--images", str(photos), "--output", str(tmp_path / "data"), "--test_fraction", "1", "--force", *flags)
        assert main(["import-labels", "--xmp", *flags]) == 0
        samples = json.loads((tmp_path / "data" / "test.json").read_text())["samples"]
        return {sample["image_name"]: sample["image_labels"] for sample in samples}

    assert imported() == {
        "a.jpg": ["Dog", "beach"],
        "f.gif": ["beach", "doggy"],
        "sub/<d>&.webp": ["auto"],
        "sub/e.tif": ["Zoë", "Zürich"],
    }
    captured = capsys.readouterr()
    assert "4 photos with keywords (4 in photo.jpg.xmp); 1 without, left out" in captured.out
    assert "6 keywords, 4 of them hierarchical: Animals|Dog is Dog" in captured.out
    mapped = imported("--mapping", str(tmp_path / "k.yaml"), "--levels", "all", "--min_images", "1")
    assert mapped == {
        "a.jpg": ["Animals", "beach", "dog"],
        "f.gif": ["Pets", "beach", "dog"],
        "sub/<d>&.webp": ["auto"],
        "sub/e.tif": ["Places", "Zürich"],
    }
    assert imported("--levels", "path")["a.jpg"] == ["Animals|Dog", "beach"]
