import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import ndcg_score, roc_auc_score, roc_curve

from aia_jax.metrics import search
from aia_jax.utils.errors import InputError

SCORES = np.array([[0.9, 0.1, 0.5, 0.3], [0.2, 0.4, 0.4, 0.8]])
RELEVANT = sparse.csr_matrix([[0, 0, 1, 1], [1, 1, 0, 0]])


def random_case(seed, grades=1, queries=20, images=60):
    rng = np.random.default_rng(seed)
    relevant = rng.integers(1, grades + 1, (queries, images)) * (rng.random((queries, images)) < 0.1)
    relevant[:, 3] = 1
    return rng.random((queries, images)).astype(np.float32) + 0.2 * (relevant > 0), relevant


def test_literal_numbers():
    found = search.search_metrics(SCORES, RELEVANT)
    # Ranks of the relevant images: 2 and 3; 2 and 4 (among equal scores, the first image ranks first).
    ideal = 1 + 1 / np.log2(3)
    gains = (1 / np.log2(3) + 1 / np.log2(4), 1 / np.log2(3) + 1 / np.log2(5))
    assert found["ndcg_5"] == pytest.approx(np.mean(gains) / ideal)
    assert found["mrr"] == pytest.approx(0.5)
    assert (found["r1"], found["r5"], found["median_rank"]) == (0, 1, 2)
    assert (found["num_queries"], found["num_images"]) == (2, 4)


@pytest.mark.parametrize("seed", range(3))
def test_areas_and_gains_are_those_of_scikit_learn(seed):
    scores, relevant = random_case(seed)
    found = search.search_metrics(scores, sparse.csr_matrix(relevant))
    assert found["auc"] == pytest.approx(roc_auc_score(relevant.ravel(), scores.ravel()))
    for count in search.GAINS_AT:
        assert found[f"ndcg_{count}"] == pytest.approx(ndcg_score(relevant, scores, k=count))


def test_grades_count_exponentially_and_ties_half():
    scores, relevant = random_case(5, grades=3)
    found = search.search_metrics(scores, sparse.csr_matrix(relevant))
    assert found["ndcg_10"] == pytest.approx(ndcg_score(2**relevant - 1, scores, k=10))
    assert search.area_under_roc(np.ones((2, 4)), RELEVANT) == 0.5


def test_the_curve_lies_on_the_exact_one():
    scores, relevant = random_case(7)
    wrong, right = search.roc_curve(scores, sparse.csr_matrix(relevant))
    assert (wrong[0], right[0], wrong[-1], right[-1]) == (0, 0, 1, 1)
    assert (np.diff([wrong, right]) >= 0).all()
    exact = roc_curve(relevant.ravel() > 0, scores.ravel(), drop_intermediate=False)
    points = set(zip(exact[0].round(9), exact[1].round(9), strict=True))
    assert set(zip(wrong.round(9), right.round(9), strict=True)) <= points
    area = np.sum(np.diff(wrong) * (right[1:] + right[:-1]) / 2)
    assert area == pytest.approx(search.area_under_roc(scores, sparse.csr_matrix(relevant)), abs=2e-3)


@pytest.mark.parametrize(
    ("scores", "relevant", "message"),
    [
        (SCORES[:1], RELEVANT, "must be of one shape"),
        (SCORES * np.nan, RELEVANT, "scores of 2 queries hold NaN"),
        (SCORES, RELEVANT * 0, "2 queries have no relevant image"),
        (SCORES, sparse.csr_matrix(np.ones((2, 4))), "every image is relevant"),
    ],
)
def test_unusable_scores_are_refused(scores, relevant, message):
    relevant = sparse.csr_matrix(relevant)
    relevant.eliminate_zeros()
    with pytest.raises(InputError, match=message):
        search.search_metrics(scores, relevant)
