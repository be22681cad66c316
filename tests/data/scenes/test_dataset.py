"""Scenes: deterministic pictures with matching labels and captions that cannot be guessed."""

import re
from collections import Counter

import numpy as np
import pytest

from aia_jax.data.scenes.dataset import BACKGROUNDS, COLORS, LABELS, SHAPES, TEXTURES, draw
from aia_jax.metrics.annotation import annotation_metrics

BACKGROUND_WORDS = {
    "grass": {"grass", "lawn", "meadow"},
    "sand": {"sand", "beach", "sandy"},
    "sea": {"sea", "water", "waves"},
    "brick": {"brick", "bricks"},
    "night": {"night", "dark"},
    "marble": {"marble"},
}
DIRECTIONS = {"left", "right", "top", "bottom", "above", "below", "over", "under", "upper", "lower", "up", "down"}


@pytest.fixture(scope="module")
def scenes():
    return [draw(3, index, 32) for index in range(800)]


def test_a_scene_depends_on_seed_and_index_only():
    forwards = [draw(1, index, 48) for index in range(6)]
    assert (forwards[0].image.shape, forwards[0].image.dtype, len(forwards[0].captions)) == ((48, 48, 3), np.uint8, 5)
    for index in (4, 0, 5, 2):
        again = draw(1, index, 48)
        np.testing.assert_array_equal(again.image, forwards[index].image)
        assert (again.labels, again.captions) == (forwards[index].labels, forwards[index].captions)
    assert not np.array_equal(draw(1, 0, 48).image, draw(2, 0, 48).image)
    assert len({scene.image.tobytes() for scene in forwards}) == 6


@pytest.mark.parametrize("index", range(8))
def test_a_scene_is_the_same_at_any_size(index):
    large, small = draw(5, index, 192), draw(5, index, 96)
    assert (large.labels, large.captions) == (small.labels, small.captions)
    shrunk = large.image.reshape(96, 2, 96, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small.image).mean() < 6
    assert np.abs(shrunk - draw(5, index + 1, 96).image).mean() > 12


def test_labels_have_the_order_of_the_vocabulary(scenes):
    for scene in scenes:
        assert list(scene.labels) == [label for label in LABELS if label in scene.labels]
        assert len(set(scene.labels) & set(BACKGROUNDS)) == 1
        assert set(scene.labels) & set(SHAPES)
        assert set(scene.labels) & set(COLORS)
    assert len(set(LABELS)) == len(LABELS) == 22


def test_frequencies_have_a_long_tail_and_do_not_suffice_to_guess_the_labels(scenes):
    counts = Counter(label for scene in scenes for label in scene.labels)
    assert set(counts) == set(LABELS)
    assert 0.01 < min(counts.values()) / len(scenes) < 0.05
    assert max(counts.values()) > 10 * min(counts.values())
    for family in (SHAPES, COLORS):
        assert max(counts[label] for label in family) > 3 * min(counts[label] for label in family)
    targets = np.array([[label in scene.labels for label in LABELS] for scene in scenes])
    frequencies = np.broadcast_to(targets.mean(0, dtype=np.float32), targets.shape)  # a guess
    assert annotation_metrics(frequencies, targets.astype(np.uint8), threshold=0.3)["f1"] < 35


def test_the_image_shows_the_colors_of_its_labels():
    nearest = {"red": (214, 30, 36), "blue": (30, 72, 226), "yellow": (250, 222, 36), "green": (26, 178, 70)}
    for color, rgb in nearest.items():
        fraction = {True: [], False: []}
        for index in range(60):
            scene = draw(9, index, 64)
            close = np.abs(scene.image.astype(float) - rgb).max(-1) < 55
            fraction[color in scene.labels].append(close.mean())
        assert np.mean(fraction[True]) > 8 * np.mean(fraction[False])


def test_captions_match_the_labels(scenes):
    objects = {*SHAPES, *COLORS, *TEXTURES} - {"solid"}
    for scene in scenes:
        (background,) = set(scene.labels) & set(BACKGROUNDS)
        assert len(set(scene.captions)) == 5
        for caption in scene.captions:
            words = set(re.findall("[a-z]+", caption))
            assert caption == caption.lower()
            assert {_singular(word) for word in words} & objects <= set(scene.labels)
            assert not words & DIRECTIONS
            places = {name for name, synonyms in BACKGROUND_WORDS.items() if synonyms & words}
            assert places == {background}
        full = {_singular(word) for word in re.findall("[a-z]+", scene.captions[0])}
        assert set(scene.labels) - {background} <= full


def test_captions_count_the_objects(scenes):
    numbers = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
    for scene in scenes:
        total, *listed = re.findall(r"\b(?:an?|one|two|three)\b", scene.captions[1].split(" shape")[0])
        rest = scene.captions[1].rsplit(", ", scene.captions[1].count(", "))[1:]
        claimed = sum(numbers[word] for part in rest for word in re.findall(r"\b(?:an?|two|three)\b", part))
        assert not listed
        assert claimed == numbers[total]


def test_captions_are_correct_english():
    phrases = [caption for index in range(300) for caption in draw(11, index, 16).captions]
    wrong = re.compile(r"\ba (?:[aeiou]|hour)|\ban (?!hour)[^aeiou]|  |,,|sss|, and ")
    assert not list(filter(wrong.search, phrases))
    assert len(set(phrases)) > 1000


def _singular(word: str) -> str:
    return word if word in LABELS else word.removesuffix("es" if word.endswith("sses") else "s")
