"""Queries with what they found, looked at through pixels."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from aia_jax.report.figures import FALSE_ALARM, HIT
from aia_jax.report.retrieval import draw_retrieval

PHOTO = np.full((20, 20, 3), (10, 200, 30), np.uint8)


def ink(path, mark):
    with Image.open(path) as picture:
        image = np.asarray(picture.convert("RGB"))
    return int((image == np.round(np.array(to_rgb(mark.color)) * 255)).all(-1).sum())


def draw(path, right):
    hits = [(PHOTO, right), (PHOTO, False)]
    captions = [("a $dog$ on the_beach", right), ("a cat " * 40, False)]
    draw_retrieval(path, [("a dog", hits)] * 2, [(PHOTO, captions)] * 3, title="demo")


def test_right_hits_stand_out(tmp_path):
    draw(tmp_path / "right.png", True)
    draw(tmp_path / "wrong.png", False)
    assert ink(tmp_path / "right.png", HIT) > 4 * ink(tmp_path / "wrong.png", HIT) > 0
    assert ink(tmp_path / "wrong.png", FALSE_ALARM) > ink(tmp_path / "right.png", FALSE_ALARM)
    with Image.open(tmp_path / "right.png") as picture:
        assert picture.width < 1600


def test_every_query_has_its_photos(tmp_path):
    draw(tmp_path / "right.png", True)
    with Image.open(tmp_path / "right.png") as picture:
        green = (np.asarray(picture.convert("RGB")) == PHOTO[0, 0]).all(-1)
    columns = green.any(0)
    assert np.count_nonzero(np.diff(columns.astype(int)) == 1) == 3  # two hits, and the photo that asks


def test_there_must_be_queries(tmp_path):
    with pytest.raises(ValueError, match="at least one query of each kind"):
        draw_retrieval(tmp_path / "none.png", [], [])
