import numpy as np
import pytest

from aia_jax.metrics.retrieval import caption_ranks, image_ranks, retrieval_metrics
from aia_jax.utils.errors import InputError


def sorted_ranks(similarity):
    """Ranks as the published code finds them: places in a sorted list."""
    by_image = [list(np.argsort(column)[::-1]) for column in similarity.T]
    by_caption = [list(np.argsort(row)[::-1]) for row in similarity]
    of_images = [min(order.index(5 * image + k) for k in range(5)) for image, order in enumerate(by_image)]
    return of_images, [order.index(caption // 5) for caption, order in enumerate(by_caption)]


def test_ranks_are_places_in_a_sorted_list():
    similarity = np.random.default_rng(0).permutation(200 * 40).reshape(200, 40).astype(np.float32)
    of_images, of_captions = sorted_ranks(similarity)
    np.testing.assert_array_equal(caption_ranks(similarity), of_images)
    np.testing.assert_array_equal(image_ranks(similarity), of_captions)


def test_equal_scores_do_not_count_as_found():
    np.testing.assert_array_equal(caption_ranks(np.zeros((10, 2))), [5, 0])
    np.testing.assert_array_equal(image_ranks(np.zeros((10, 2))), [1] * 5 + [0] * 5)


def test_metrics_of_a_small_matrix():
    similarity = np.zeros((10, 2))
    similarity[:5, 0], similarity[5:, 1] = 1, 1
    similarity[0, 1] = 2  # the first caption finds the wrong image, and image 1 finds it first
    metrics = retrieval_metrics(similarity)
    expected = {"i2t_r1": 50, "t2i_r1": 90, "i2t_r5": 100, "t2i_r5": 100, "i2t_mean": 1.5, "i2t_median": 1, "rsum": 540}
    assert metrics == metrics | expected | {"num_images": 2, "num_captions": 10}


def test_an_image_may_have_one_caption():
    similarity = np.array([[3, 2, 1], [3, 2, 1], [0, 1, 4]])  # captions 0 and 2 find their images
    metrics = retrieval_metrics(similarity)
    expected = {"t2i_r1": 200 / 3, "t2i_mean": 4 / 3, "i2t_r1": 200 / 3, "num_images": 3, "num_captions": 3}
    assert metrics == metrics | {name: pytest.approx(value) for name, value in expected.items()}
    np.testing.assert_array_equal(caption_ranks(similarity), [1, 0, 0])


def test_thousands_are_folds():
    rng = np.random.default_rng(0)
    similarity = rng.random((10_000, 2_000), np.float32)
    similarity[np.arange(10_000), np.arange(10_000) // 5] += 0.9
    metrics = retrieval_metrics(similarity)
    folds = [retrieval_metrics(similarity[5000 * k : 5000 * (k + 1), 1000 * k : 1000 * (k + 1)]) for k in range(2)]
    for name in ("i2t_r1", "t2i_r10", "t2i_median", "rsum"):
        assert metrics[f"1k_{name}"] == pytest.approx(np.mean([fold[name] for fold in folds]))
    assert metrics["1k_t2i_r1"] > metrics["t2i_r1"]


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        (np.zeros((11, 2)), r"similarities \(11, 2\) must be \[captions, images\] with equally many captions"),
        (np.zeros((0, 0)), "must be"),
        (np.full((5, 1), np.nan), "similarities of 5 captions hold NaN"),
    ],
)
def test_bad_similarities_are_refused(similarity, message):
    with pytest.raises(InputError, match=message):
        retrieval_metrics(similarity)
