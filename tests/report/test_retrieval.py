import numpy as np

from aia_jax.report.page_parts import FALSE_ALARM, HIT
from aia_jax.report.retrieval import draw_retrieval
from tests.helpers.pictures import GREEN, count_runs, ink

PHOTO = np.full((20, 20, 3), GREEN, np.uint8)


def test_correct_results_have_their_own_color_and_every_query_has_its_photos(drawn):
    images = []
    for right in (True, False):
        captions = [("a $dog$ on the_beach", right), ("a cat " * 40, False)]
        text_queries = [("a dog", [(PHOTO, right), (PHOTO, False)])] * 2
        images.append(drawn(draw_retrieval, text_queries, [(PHOTO, captions)] * 3, title="demo"))
    correct, wrong = images
    assert ink(correct, HIT.color).sum() > 4 * ink(wrong, HIT.color).sum() > 0
    assert ink(wrong, FALSE_ALARM.color).sum() > ink(correct, FALSE_ALARM.color).sum()
    assert correct.shape[1] < 1600
    assert count_runs(ink(correct, GREEN).any(0)) == 3  # two results, and the photo of the image query
