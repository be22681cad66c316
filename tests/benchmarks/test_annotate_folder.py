"""The benchmark of `aia annotate` on a dozen small images."""

import json
import sys

import pytest
from PIL import Image

from aia_jax.data import scenes
from aia_jax.utils.errors import InputError
from benchmarks import annotate_folder
from benchmarks.browser import NoBrowserError
from tests.helpers.xla_flags import xla_flags

TINY = {"model.hidden_size": 16, "model.feedforward_size": 16, "model.num_heads": 2}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(scenes.draw(0, number, 32).image).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def benchmark(photos, tmp_path, monkeypatch):
    """Runs the command and returns its exit code."""
    monkeypatch.setenv("XLA_FLAGS", xla_flags())

    def run(*flags):
        given = [f"--images={photos}", "--image_size=32", f"--output={tmp_path / 'numbers.json'}"]
        fields = [f"--config.{name}={value}" for name, value in TINY.items()]
        monkeypatch.setattr(sys, "argv", ["annotate_folder", "--config=configs/demo.py", *given, *fields, *flags])
        return annotate_folder.main()

    return run


def test_photos_are_counted_and_timed(benchmark, photos, tmp_path, monkeypatch, capfd):
    (photos / "torn.png").write_bytes((photos / "0.png").read_bytes()[:60])
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    monkeypatch.setattr(annotate_folder, "_NUM_OPENINGS", 1)
    assert benchmark() == 0
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert (found["photos"], found["unreadable"], found["image_size"]) == (12, 2, 32)
    assert found["images_per_second"] == pytest.approx(12 / found["seconds"])
    assert found["images_per_cpu_second"] == pytest.approx(12 / found["cpu_seconds"])
    assert 1 < found["cpu_seconds"] < 600
    assert 1e8 < found["peak_bytes"] < 1e10
    assert found["page_bytes"] > 1e4
    printed = capfd.readouterr()
    assert "photos                             12  and 2 unreadable" in printed.out
    assert ("seconds until photos show" in printed.out) == ("seconds_until_shown" in found)
    if "seconds_until_shown" in found:
        assert 0 < found["seconds_until_shown"]["median"] < 60
    else:
        assert "was not measured: " in printed.err


def test_a_failure_of_annotate_is_reported(photos, tmp_path, capfd):
    with pytest.raises(InputError, match="aia annotate ended with exit code 2"):
        annotate_folder.annotate(tmp_path / "no run", photos, tmp_path / "annotated")
    assert "no run does not exist" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--images=nowhere", "nowhere does not exist; name a folder of photos"),
        ("--config.model.hiden_size=1", "no field --config.model.hiden_size; nearest: --config.model.hidden_size"),
        ("--config=configs/demo_search.py", "this benchmark needs an annotation config"),
    ],
)
def test_invalid_flags_are_refused(benchmark, monkeypatch, capsys, flag, message):
    monkeypatch.setattr(f"{__name__}.TINY", {})
    assert benchmark(flag) == 2
    assert message in capsys.readouterr().err


def test_without_a_browser_the_error_says_how_to_install_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoBrowserError, match=r"apt-get install chromium chromium-driver|pip install selenium"):
        annotate_folder.seconds_until_shown(tmp_path / "page.html")
