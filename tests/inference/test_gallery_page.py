"""`aia annotate --html`: the page shows all annotations, also after an interruption or in a later call."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import ExifTags, Image

import aia_jax
from aia_jax.cli import annotate as command
from aia_jax.cli.main import main
from aia_jax.data import scenes
from aia_jax.inference import annotation_output
from aia_jax.inference.thumbnails import PICTURES
from tests.helpers.gallery_page import read_page
from tests.helpers.untrained import annotator_config, write_run

NUM_PHOTOS = 12


@pytest.fixture
def photos(tmp_path):
    """Scenes of several shapes; one is rotated by EXIF."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(NUM_PHOTOS):
        scene = scenes.draw(0, number, 96).image
        Image.fromarray(scene[: 96 - 4 * number]).save(folder / f"{number:02}.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.rot90(scene)[:, :60]).resize((600, 1000)).save(folder / "turned.png", exif=exif)
    return folder


@pytest.fixture
def annotate(workdir, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "enable_compilation_cache", lambda: None)

    def run(*flags, model=workdir):
        given = ["--images", str(photos), "--output", str(tmp_path / "out"), "--batch_size", "8", "--threshold", "0.5"]
        return main(["annotate", "--workdir", str(model), *given, *flags])

    return run


def labels_of(folder):
    lines = map(json.loads, (folder / "annotations.jsonl").read_text().splitlines())
    return {line["image"]: {label["label"]: label["score"] for label in line["labels"]} for line in lines}


def same_page(one, other):
    assert one[0] == other[0]
    assert list(one[1]) == list(other[1])
    for photo, wanted in zip(one[1].values(), other[1].values(), strict=True):
        assert photo["labels"] == pytest.approx(wanted["labels"], abs=2e-4)
        assert np.array_equal(photo["picture"], wanted["picture"])
        assert photo["maps"].keys() == wanted["maps"].keys()
        for label, heat in photo["maps"].items():
            np.testing.assert_allclose(heat, wanted["maps"][label].astype(int), atol=1)


def test_the_page_shows_labels_with_their_maps(annotate, workdir, photos, tmp_path):
    (photos / "b\nad.jpg").write_bytes(b"")
    assert annotate("--html") == 0
    facts, shown = read_page(tmp_path / "out" / "gallery.html")
    found = labels_of(tmp_path / "out")
    assert (facts["title"], facts["problems"]) == ("photos", [["b\nad.jpg", "the file is empty"]])
    assert list(shown) == list(found)
    names = sorted(found)
    expected = aia_jax.load(workdir)([photos / name for name in names])
    assert 0 < sum(map(len, found.values())) < len(found) * len(scenes.LABELS)
    for number, name in enumerate(names):
        assert shown[name]["labels"] == pytest.approx(found[name], abs=6e-5)
        assert list(shown[name]["maps"]) == list(found[name])
        for label, heat in shown[name]["maps"].items():
            attention = expected.attention[number, scenes.LABELS.index(label)]
            np.testing.assert_allclose(heat / 255, attention / attention.max(), atol=3 / 255)
    assert shown["05.png"]["picture"].shape == (76, 96, 3)
    assert shown["turned.png"]["picture"].shape == (269, 448, 3)


def test_a_later_call_adds_the_page_and_continues_it(annotate, photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert annotate("--html") == 0
    assert "gallery.html: 13 photos, about 0." in capsys.readouterr().out
    labels, at_once = labels_of(out), read_page(out / "gallery.html")
    assert annotate("--force") == 0
    assert not (out / PICTURES).exists()
    before = (out / "annotations.jsonl").read_bytes()
    assert list(labels_of(out)) == list(labels)
    assert all(found == pytest.approx(labels[name], abs=1e-6) for name, found in labels_of(out).items())
    add = annotation_output.AnnotationOutput.add

    def stop(self, *found):
        add(self, *found)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(annotation_output.AnnotationOutput, "add", stop)
        assert annotate("--html") == 128 + signal.SIGTERM
    assert "stopped after 8 photos; the same command continues" in capsys.readouterr().err
    assert annotate("--html") == 0
    assert "5 of 13 photos read now" in capsys.readouterr().out
    assert (out / "annotations.jsonl").read_bytes() == before
    same_page(read_page(out / "gallery.html"), at_once)


def test_new_and_removed_photos_update_the_page(annotate, photos, tmp_path, capsys):
    assert annotate() == 0
    (photos / "03.png").unlink()
    assert annotate("--html") == 0
    Image.new("RGB", (20, 10), "red").save(photos / "new.webp")
    capsys.readouterr()
    assert annotate("--html") == 0
    assert "1 of 13 photos read now" in capsys.readouterr().out
    _, shown = read_page(tmp_path / "out" / "gallery.html")
    assert list(shown)[-1] == "new.webp"
    assert [name for name, photo in shown.items() if photo["picture"] is None] == ["03.png"]  # its labels stay


def test_heads_without_attention_have_pictures_without_maps(annotate, tmp_path):
    other = write_run(tmp_path / "gap", annotator_config(**{"model.head": "gap"}))
    assert annotate("--html", "--threshold", "0", model=other) == 0
    _, shown = read_page(tmp_path / "out" / "gallery.html")
    for photo in shown.values():
        assert len(photo["labels"]) == len(scenes.LABELS)
        assert not photo["maps"]
        assert photo["picture"] is not None
