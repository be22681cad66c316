import numpy as np
import pytest

from aia_jax.report.figures import FALSE_ALARM, HIT
from aia_jax.report.retrieval import draw_retrieval
from tests.helpers.pictures import GREEN, count_runs, ink, pixels

PHOTO = np.full((20, 20, 3), GREEN, np.uint8)


def draw(path, correct):
    captions = [("a $dog$ on the_beach", correct), ("a cat " * 40, False)]
    draw_retrieval(path, [("a dog", [(PHOTO, correct), (PHOTO, False)])] * 2, [(PHOTO, captions)] * 3, title="demo")
    return pixels(path)


def test_correct_results_have_their_own_color_and_every_query_has_its_photos(tmp_path):
    correct, wrong = draw(tmp_path / "correct.png", True), draw(tmp_path / "wrong.png", False)
    assert ink(correct, HIT.color).sum() > 4 * ink(wrong, HIT.color).sum() > 0
    assert ink(wrong, FALSE_ALARM.color).sum() > ink(correct, FALSE_ALARM.color).sum()
    assert correct.shape[1] < 1600
    assert count_runs(ink(correct, GREEN).any(0)) == 3  # two results, and the photo of the image query


def test_there_must_be_queries(tmp_path):
    with pytest.raises(ValueError, match="at least one query of each kind"):
        draw_retrieval(tmp_path / "none.png", [], [])
