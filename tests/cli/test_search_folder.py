"""`aia search` on synthetic photos, with random weights."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

from aia_jax.cli.main import main
from aia_jax.data import scenes
from aia_jax.inference.searcher import PhotoSearch
from aia_jax.tasks import make_task
from configs import demo_search
from tests.helpers.untrained import annotator_config, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of an annotator and of a search run on it."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "annotator", annotator_config(**{"data.num_test": 4}))
    config = demo_search.get_config()
    config.update_from_flattened_dict(
        {
            "data.annotator": str(root / "annotator"),
            "data.num_train": 40,
            "data.num_test": 4,
            "model.embed_size": 8,
            "model.word_size": 4,
            "eval.batch_size": 8,
        }
    )
    write_run(root / "search", config)
    return root


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(scenes.draw(3, number, 48).image).save(folder / f"{number:02}.png")
    return folder


def search(runs, photos, *arguments):
    flags = ["--workdir", str(runs / "search"), "--images", str(photos), "--index", str(photos.parent / "index")]
    return main(["search", *flags, "--batch_size", "8", *arguments])


def listed(text):
    """Returns the files and scores of the printed rankings."""
    lines = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit() and ".png" in line]
    return [(words[5], float(words[1])) for words in lines]


def test_ranked_photos_are_printed_and_the_index_is_kept(runs, photos, tmp_path, capsys):
    (photos / "torn.jpg").write_bytes(b"\xff\xd8")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    upright = Image.fromarray(scenes.draw(3, 50, 48).image)
    upright.save(photos / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(photos / "turned.png", exif=exif)
    assert search(runs, photos, "red circle", "--top", "20", "--html", str(tmp_path / "found.html")) == 0
    first = capsys.readouterr()
    assert "14 photos indexed: 14 new, 0 changed, 0 gone" in first.out
    assert "1 cannot be used and are left out:\n  torn.jpg: " in first.err
    scores = dict(listed(first.out))
    assert len(scores) == 14
    assert scores["upright.png"] == pytest.approx(scores["turned.png"], abs=2e-3)
    assert abs(scores["upright.png"] - scores["05.png"]) > 5e-3
    page = (tmp_path / "found.html").read_text()
    assert page.count("<img") >= 10
    assert "red circle" in page
    (photos / "03.png").unlink()
    assert search(runs, photos, "red circle", "blue ring", "--top", "5") == 0
    second = capsys.readouterr().out
    assert "13 photos indexed: 0 new, 0 changed, 1 gone" in second
    assert len(listed(second)) == 10
    path = tmp_path / "index" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": "another"}))
    assert search(runs, photos, "red circle") == 0
    assert "was rebuilt: it was made by another model" in capsys.readouterr().out


def test_scores_are_those_of_the_model(runs, photos):
    found = PhotoSearch(runs / "search", batch_size=8)
    images = np.stack([scenes.draw(3, number, 32).image for number in range(12)])
    rows = [found.compute(images[start : start + 8]) for start in (0, 8)]
    parts = [(part, np.arange(len(part["counts"]))) for part in rows]
    best = found.search("red circle", parts, count=12, shortlist=0)
    task = make_task(found.config)
    maps = np.concatenate([found.annotator.maps(images[start : start + 8]) for start in (0, 8)])
    keywords, counts = (np.concatenate([part[name] for part in rows]) for name in ("keywords", "counts"))
    model = found._model
    expected = task.attend(
        model, {"maps": maps.astype(np.float16), "keywords": keywords, "counts": counts}, found.encode("red circle")
    )
    expected = jax.device_get(expected)
    np.testing.assert_allclose(best.scores, np.sort(expected["score"][:, 0])[::-1], rtol=2e-3)
    np.testing.assert_allclose(best.weights, expected["weights"][best.rows, 0], rtol=2e-3)
    np.testing.assert_allclose(best.attention, expected["visual_attention"][best.rows, 0], rtol=2e-2)
    # A shortlist leaves out whom the model without visual attention ranks last.
    rough = found.rough_scores(found.encode("red circle"), parts)
    few = found.search("red circle", parts, count=3, shortlist=5)
    assert set(few.rows) <= set(np.argsort(-rough)[:5])
    assert found.search("red circle", parts, count=12, shortlist=3).rows.tolist() == best.rows.tolist()


def test_queries_come_from_a_pipe(runs, photos, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("red circle\nunheard\nblue ring\n"))
    assert search(runs, photos, "--top", "2") == 0
    printed = capsys.readouterr()
    assert len(listed(printed.out)) == 4
    assert "no word of 'unheard' is known" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unheard words"], "no word of 'unheard words' is known to"),
        (["red", "blue", "--html", "x.html"], "--html shows one query; give exactly one"),
        (["red", "--html", "nowhere/x.html"], "--html nowhere/x.html names no file in an existing folder"),
        (["red", "--annotator", "nowhere"], "nowhere"),
        (["red", "--images", "nowhere"], "nowhere does not exist; name a folder of photos"),
    ],
)
def test_mistakes_are_reported(runs, photos, arguments, message, capsys):
    assert search(runs, photos, *arguments) == 2
    assert message in capsys.readouterr().err


def test_only_a_search_run_with_its_own_annotator_will_do(runs, photos, tmp_path, capsys):
    flags = ["--images", str(photos), "--index", str(tmp_path / "index"), "red"]
    assert main(["search", "--workdir", str(runs / "annotator"), *flags]) == 2
    assert "name one of image search" in capsys.readouterr().err
    write_run(tmp_path / "other", annotator_config(**{"data.num_test": 4, "seed": 5}))
    assert main(["search", "--workdir", str(runs / "search"), "--annotator", str(tmp_path / "other"), *flags]) == 2
    assert "is another annotator than" in capsys.readouterr().err
