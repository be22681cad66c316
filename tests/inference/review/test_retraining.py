"""Retraining: what is not known has no effect, and answers replace imported labels."""

import numpy as np
import pytest

from aia_jax.inference.review.imported import LabelledFeatures
from aia_jax.inference.review.ranking import expected_gains, rank_photos
from aia_jax.inference.review.retraining import fit_head, initial_head, join_rows
from tests.helpers.untrained import annotator_config

NUM_IMPORTED, NUM_CORRECTED, NUM_LABELS, NUM_FEATURES = 40, 12, 3, 8


@pytest.fixture(scope="module")
def photos():
    """Imported photos without the last label, and corrected photos. The label c is the sign of the feature c."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(NUM_IMPORTED + NUM_CORRECTED, 1, 1, NUM_FEATURES)).astype(np.float32)
    targets = features[:, 0, 0, :NUM_LABELS] > 0
    paths = tuple(f"/photos/{row}.jpg" for row in range(len(features)))
    versions = features[:NUM_IMPORTED], features[:NUM_IMPORTED] + 0.01
    imported = LabelledFeatures(versions, targets[:NUM_IMPORTED, :-1], paths[:NUM_IMPORTED])
    known = rng.random((NUM_CORRECTED, NUM_LABELS)) < 0.5
    return imported, (paths[NUM_IMPORTED:], features[NUM_IMPORTED:], targets[NUM_IMPORTED:], known)


def config_of_head():
    return annotator_config(
        **{
            "model.head": "gap",
            "model.dropout": 0.0,
            "epochs": 2,
            "batch_size": 16,
            "optimizer.max_learning_rate": 0.01,
        }
    )


def test_labels_that_were_never_looked_at_have_no_effect_on_the_head(photos):
    imported, (paths, features, targets, known) = photos
    config = config_of_head()
    start = initial_head(config, NUM_LABELS, NUM_FEATURES)

    def fit(targets, known):
        rows = join_rows(imported, NUM_LABELS, paths, features, targets, known)
        return fit_head(config, start, rows, lambda fraction: None)

    fitted = fit(targets, known)
    same = fit(np.where(known, targets, ~targets), known)
    for path, value in fitted.arrays.items():
        np.testing.assert_array_equal(same.arrays[path], value)
    other = fit(np.where(known, ~targets, targets), known)
    assert np.abs(other.arrays["head.linear.kernel"] - fitted.arrays["head.linear.kernel"]).max() > 0.01
    assert fitted.scores.shape == (NUM_IMPORTED + NUM_CORRECTED, NUM_LABELS)
    right = (fitted.scores[:, :-1] > 0.5) == np.concatenate([imported.targets, targets[:, :-1]])
    assert right.mean() > 0.7  # of photos that the head did not train on


def test_answers_about_an_imported_photo_replace_its_labels(photos):
    imported, (_, features, targets, known) = photos
    paths = [imported.paths[5], *(f"/new/{row}.jpg" for row in range(NUM_CORRECTED - 1))]
    known[0], targets = [True, False, True], targets.copy()
    targets[0] = ~imported.targets[5, 0], ~imported.targets[5, 1], True
    rows = join_rows(imported, NUM_LABELS, paths, features, targets, known)
    assert len(rows.targets) == NUM_IMPORTED + NUM_CORRECTED - 1
    np.testing.assert_array_equal(rows.targets[5], [~imported.targets[5, 0], imported.targets[5, 1], True])
    np.testing.assert_array_equal(np.delete(rows.targets[:NUM_IMPORTED], 5, 0)[:, -1], False)
    assert rows.known[:NUM_IMPORTED].all()
    np.testing.assert_array_equal(rows.known[NUM_IMPORTED:], known[1:])
    np.testing.assert_array_equal(rows.features(np.array([NUM_IMPORTED, 5])), [features[1], imported.versions[0][5]])


def test_high_scores_of_labels_with_few_photos_come_first():
    scores = np.array([[0.5, 0.5, 0.9], [0.1, 0.8, 0.9], [0.01, 0.02, np.nan]], np.float32)
    gains = expected_gains(scores, np.array([99, 3, 8]))
    np.testing.assert_allclose(gains, [[0.05, 0.25, 0.3], [0.01, 0.4, 0.3], [0.001, 0.01, -np.inf]], rtol=1e-6)
    answered = np.full((1, 3), -np.inf)
    assert rank_photos(np.concatenate([answered, gains])).tolist() == [2, 1, 3, 0]
