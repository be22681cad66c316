import numpy as np
import pytest

from aia_jax.data.annotation.datasets import stratified_split


def random_targets(num_images, num_labels, seed):
    """Targets with frequent and rare labels, and images without any."""
    generator = np.random.default_rng(seed)
    targets = generator.random((num_images, num_labels)) < 0.4 / np.arange(1, num_labels + 1)
    return targets[:, targets.any(axis=0)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_images", [30, 300])
def test_each_label_is_split_in_the_same_proportion(num_images, seed):
    targets = random_targets(num_images, 20, seed)
    second = stratified_split(targets, 0.2, seed, in_both=True)
    counts, selected = targets.sum(axis=0), targets[second].sum(axis=0)
    assert (selected < counts).all()
    assert (selected[counts == 1] == 0).all()
    assert (np.abs(selected - 0.2 * counts) <= np.maximum(1, 0.1 * counts)).mean() > 0.9
    assert abs(second.mean() - 0.2) < 0.1
    if num_images == 300:
        assert (selected[counts > 1] > 0).all()


def test_frequent_labels_are_split_better_than_by_chance():
    targets = random_targets(200, 30, 1)
    second = stratified_split(targets, 0.2, 0, in_both=False)
    error = np.abs(targets[second].mean(axis=0) - targets.mean(axis=0)).mean()
    by_chance = []
    for seed in range(20):
        rows = np.random.default_rng(seed).permutation(200)[: second.sum()]
        by_chance.append(np.abs(targets[rows].mean(axis=0) - targets.mean(axis=0)).mean())
    assert error < min(by_chance)


def test_a_label_of_two_images_is_in_both_parts_on_request():
    targets = np.eye(5, dtype=np.uint8).repeat(2, axis=0)
    second = stratified_split(targets, 0.1, 0, in_both=True)
    assert second.reshape(5, 2).sum(axis=1).tolist() == [1] * 5
    assert stratified_split(targets, 0.1, 0, in_both=False).sum() == 1


def test_labels_of_one_image_stay_in_the_first_part_and_neither_part_is_empty():
    assert stratified_split(np.zeros((50, 1)), 0.2, 0, in_both=True).sum() == 10  # images without labels
    second = stratified_split(np.array([[1, 0], [1, 0], [1, 1]]), 0.9, 0, in_both=True)
    assert second.tolist() in ([True, False, False], [False, True, False], [True, True, False])
    assert stratified_split(np.eye(4), 0.2, 0, in_both=True).sum() == 1  # each label is in one part only
    assert stratified_split(np.ones((2, 3)), 0.01, 0, in_both=True).sum() == 1
    assert stratified_split(np.ones((2, 3)), 0.99, 0, in_both=False).sum() == 1


def test_labels_that_cannot_be_in_both_parts_are_in_the_first():
    triangle = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]])  # three images; each label is in two of them
    for seed in range(5):
        second = stratified_split(triangle, 0.5, seed, in_both=True)
        assert triangle[~second].any(axis=0).all()
        assert second.sum() == 1


def test_the_seed_breaks_ties():
    targets = random_targets(60, 6, 2)
    parts = [stratified_split(targets, 0.3, seed, in_both=True) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(parts[0], parts[1])
    assert (parts[0] != parts[2]).any()
