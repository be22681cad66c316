"""Thresholds of labels compared with scikit-learn and with brute force."""

import itertools
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aia_jax.metrics import thresholds
from aia_jax.metrics.annotation import label_metrics
from aia_jax.metrics.thresholds import CANDIDATES, fit_mcc, fit_mcc_exact, load_thresholds, refit_mcc, save_thresholds
from aia_jax.utils.errors import InputError
from benchmarks import thresholds as benchmark

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="the oracle is scikit-learn")


def sklearn_mcc(target: np.ndarray, predicted: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found", category=UserWarning)
        return sklearn_metrics.matthews_corrcoef(target, predicted)


def columns(scores: np.ndarray, targets: np.ndarray) -> zip:
    return zip(scores.T, targets.T, strict=True)


def fit_by_loop(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The reference's loop over labels and candidates, in the dtype of the scores."""
    cuts = np.asarray(CANDIDATES, scores.dtype)
    table = [[sklearn_mcc(target, score >= cut) for cut in cuts] for score, target in columns(scores, targets)]
    return np.asarray(CANDIDATES)[np.argmax(table, axis=1)]


def best_by_brute_force(score: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """The best midpoint of two neighbouring distinct scores of one label, the lowest of equals, and its MCC."""
    best = (0.5, 0.0)
    for lower, upper in itertools.pairwise(np.unique(score)):
        if (mcc := sklearn_mcc(target, score >= upper)) > best[1]:
            best = ((float(lower) + float(upper)) / 2, mcc)
    return best


def sparse_problem(num_images=300, num_labels=12, dtype=np.float32, seed=0):
    """Labels become rarer. The last two are never and always true. The two before them have constant scores."""
    rng = np.random.default_rng(seed)
    targets = rng.random((num_images, num_labels)) < np.linspace(0.5, 0.01, num_labels)
    scores = np.clip(rng.normal(0.2 + 0.3 * targets, 0.15), 0, 1).astype(dtype)
    targets[:, -2], targets[:, -1] = False, True
    scores[:, -4], scores[:, -3] = 0.01, 0.35
    return scores, targets.astype(np.uint8)


def test_a_case_by_hand_over_the_papers_candidates():
    """0.35 to 0.5 separate label 0, the first is chosen; label 1 is reversed: its best MCC is 0, at 0.05."""
    scores = np.asarray([[0.9, 0.1], [0.5, 0.2], [0.3, 0.8], [0.1, 0.9]])
    targets = np.asarray([[1, 1], [1, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(fit_mcc(scores, targets), [0.35, 0.05])
    np.testing.assert_array_equal(fit_mcc_exact(scores, targets), [0.4, 0.5])
    assert CANDIDATES == (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("seed", range(3))
def test_the_grid_chooses_the_threshold_of_scikit_learn(dtype, seed):
    scores, targets = sparse_problem(dtype=dtype, seed=seed)
    found = fit_mcc(scores, targets)
    np.testing.assert_array_equal(found, fit_by_loop(scores, targets))
    np.testing.assert_array_equal(found[-4:], 0.05)  # no threshold separates these labels
    ties = np.random.default_rng(seed).choice(np.asarray(CANDIDATES, dtype), (80, 12))
    np.testing.assert_array_equal(fit_mcc(ties, targets[:80]), fit_by_loop(ties, targets[:80]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("candidate", CANDIDATES)
def test_a_score_equal_to_a_candidate_is_predicted_by_it(dtype, candidate):
    """Only the candidate that equals the higher score separates it from the next lower number."""
    scores = np.asarray([[candidate], [np.nextafter(dtype(candidate), dtype(0))]], dtype)
    assert fit_mcc(scores, [[1], [0]]) == candidate


def problems(dtype, values):
    """Scores and targets of up to nine images and three labels."""
    bits, shapes = st.integers(0, 1), st.tuples(st.integers(1, 9), st.integers(1, 3))
    return shapes.flatmap(
        lambda shape: st.tuples(
            arrays.arrays(dtype, shape, elements=values), arrays.arrays(np.uint8, shape, elements=bits)
        )
    )


COARSE = st.sampled_from([0.0, 0.05, 0.1, 0.15, 0.3, 0.7, 1.0]).map(np.float32).map(float)


@settings(deadline=None, max_examples=60)
@given(problems(np.float32, COARSE) | problems(np.float64, st.floats(0, 1)))
def test_any_small_problem(problem):
    scores, targets = problem
    np.testing.assert_array_equal(fit_mcc(scores, targets), fit_by_loop(scores, targets))
    found = fit_mcc_exact(scores, targets)
    for score, target, threshold in zip(scores.T, targets.T, found, strict=True):
        best = best_by_brute_force(score, target)[1]
        assert max(sklearn_mcc(target, score > score.dtype.type(threshold)), 0) == best


@pytest.mark.parametrize("num_images", [1, 2, 3, 120])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exact_threshold_is_the_best_of_all_midpoints(dtype, num_images):
    scores, targets = sparse_problem(num_images, 40, dtype=dtype, seed=3)
    scores[:, :4] = np.round(scores[:, :4], 1)
    expected = [best_by_brute_force(*label)[0] for label in columns(scores, targets)]
    found = fit_mcc_exact(scores, targets)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[-4:], 0.5)
    if num_images > 2:  # with fewer images, some scores are 0.5
        np.testing.assert_array_equal(scores > found.astype(dtype), scores >= found.astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lower", [0.3, 0.5, 0.7])
def test_the_exact_threshold_separates_neighbouring_floats(dtype, lower):
    """No number lies between the two scores; `score > threshold` must still separate them."""
    upper = np.nextafter(dtype(lower), dtype(1))
    scores, targets = np.asarray([[lower], [upper], [upper]], dtype), np.asarray([[0], [1], [1]])
    labels = label_metrics(scores, targets, fit_mcc_exact(scores, targets))
    assert (labels["tp"], labels["predicted"]) == ([2], [2])


@pytest.mark.parametrize("fit", [fit_mcc, fit_mcc_exact])
def test_memory_layout_and_dtype_do_not_matter(fit):
    scores, targets = sparse_problem(100, 9)
    expected = fit(scores, targets)
    assert expected.dtype == np.float64
    np.testing.assert_array_equal(fit(np.asfortranarray(scores), targets.astype(bool)), expected)
    np.testing.assert_array_equal(fit(scores[::-1], targets[::-1].astype(np.float32)), expected)
    assert fit(scores[:, :0], targets[:, :0]).shape == (0,)
    np.testing.assert_array_equal(fit([[1], [0]], [[1], [0]]), [0.05 if fit is fit_mcc else 0.5])


def test_mcc_has_the_same_bits_as_scikit_learn():
    rng = np.random.default_rng(4)
    for num_images in (7, 499, 20_011):
        target, predicted = (rng.random((2, num_images)) < [[0.3], [0.2]]).astype(int)
        counts = (target & predicted).sum(), predicted.sum(), target.sum()
        assert thresholds._matthews(*counts, num_images) == sklearn_mcc(target, predicted)


@pytest.mark.parametrize("fit", [fit_mcc, fit_mcc_exact])
def test_unusable_scores_are_refused(fit):
    with pytest.raises(InputError, match=r"scores \(4, 3\) and targets \(4, 2\)"):
        fit(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(InputError, match="scores of 1 images hold NaN, the first in row 2"):
        fit(np.asarray([[0.0], [0.1], [np.nan]]), np.zeros((3, 1)))
    with pytest.raises(InputError, match="no images"):
        fit(np.zeros((0, 3)), np.zeros((0, 3)))


def test_thresholds_are_refitted_only_to_known_labels_that_the_scores_can_tell_apart():
    rng = np.random.default_rng(0)
    scores, targets = rng.random((200, 6)).astype(np.float32), rng.random((200, 6)) < 0.3
    targets[:, :2] = scores[:, :2] > [0.62, 0.4]
    known = np.ones((200, 6), bool)
    known[:120, 0] = False  # another part of the images decides
    targets[:120, 0] = rng.random(120) < 0.5
    targets[:, 4] = scores[:, 4] < 0.4  # low scores are right
    targets[:, 5] = rng.random(200) < 0.2 + 0.3 * scores[:, 5]  # the scores hardly help: the highest MCC is 0.2
    targets[:, 2] = np.arange(200) == 0  # one positive
    known[:, 3] = targets[:, 3]  # no negative
    before = np.array([0.5, 0.5, 0.33, 0.34, 0.35, 0.36])
    found = refit_mcc(scores, targets, known, before)
    assert found[0] == fit_mcc(scores[120:, :1], targets[120:, :1])[0] == 0.6
    assert found[1] == 0.4
    np.testing.assert_array_equal(found[2:], before[2:])
    everything = refit_mcc(scores[:, :2], targets[:, :2], np.ones((200, 2), bool), before[:2])
    np.testing.assert_array_equal(everything, fit_mcc(scores[:, :2], targets[:, :2]))


def test_thresholds_can_be_saved_and_loaded(tmp_path):
    path = tmp_path / "thresholds.json"
    save_thresholds(path, ["sun", "über"], np.asarray([0.1, 1 / 3]))
    np.testing.assert_array_equal(load_thresholds(path, ["über", "sun"]), [1 / 3, 0.1])
    with pytest.raises(ValueError, match="zip"):
        save_thresholds(path, ["sun"], np.asarray([0.1, 0.2]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"{", "is not JSON"),
        (b"\xff\xfe0", "is not UTF-16 text"),
        (b"[0.5, 0.5]", "expected an object .* found a list"),
        (b'{"sun": 0.5}', "no threshold for the label 'city'"),
        (b'{"sun": 0.5, "city": 0.5, "ctiy": 0.5}', "unknown label 'ctiy'; nearest: city"),
        (b'{"sun": "high", "city": 0.5}', "label 'sun': a threshold must be a number from 0 to 1, found \"high\""),
        (b'{"sun": NaN, "city": 0.5}', "label 'sun': .* found NaN"),
        (b'{"sun": 1.01, "city": 0.5}', r"label 'sun': .* found 1\.01"),
        (b'{"sun": -0.1, "city": 0.5}', r"label 'sun': .* found -0\.1"),
        (b'{"sun": true, "city": 0.5}', "label 'sun': .* found true"),
        (b'{"sun": null, "city": 0.5}', "label 'sun': .* found null"),
    ],
)
def test_unusable_threshold_files_are_refused(tmp_path, content, message):
    path = tmp_path / "thresholds.json"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_thresholds(path, ["sun", "city"])
    assert str(path) in str(caught.value)


def test_the_benchmark_agrees_and_writes_what_it_measured(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    arguments = ["--images", "40", "--labels", "6", "--output", str(path)]
    benchmark._run(benchmark._make_parser().parse_args(arguments))
    document = json.loads(path.read_text())
    expected = {"thresholds_equal": True, "num_images": 40, "num_labels": 6, "dtype": "float32"}
    assert document | expected == document
    assert document["seconds"].keys() == {"fit_mcc", "fit_mcc_exact", "sklearn_loop"}
    assert "40 images x 6 labels, 14 candidates, equal thresholds" in capsys.readouterr().out
