import numpy as np
import pytest

from aia_jax.data.retrieval.photo_captions import CaptionedPhotos
from aia_jax.data.words.mentions import mentions
from aia_jax.inference.caption_words import CaptionWords, fit_caption_words

NAMES = ("person", "dog", "tennis ball", "cat")


def test_a_caption_mentions_a_label_by_its_plural_or_a_word_of_the_same_meaning():
    captions = ["Two women on a hotdog stand", "some Puppies", "a dog with tennis balls", "a human, not a person."]
    owners = np.array([0, 1, 1, 2])
    found = mentions(NAMES, CaptionedPhotos(None, ("a", "b", "c"), captions, owners))
    np.testing.assert_array_equal(found, [[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]])


@pytest.fixture(scope="module")
def words():
    """A vector tells each word exactly; 900 of 1,000 photos show a person, 50 a dog, 19 a ball and none a cat."""
    counts = np.array([900, 50, 19, 0])
    mentioned = np.arange(1000)[:, None] < counts
    vectors = np.random.default_rng(0).normal(size=(1000, 6)).astype(np.float32)
    vectors[:, :4] = mentioned * 2.0 - 1
    return fit_caption_words(vectors, mentioned, NAMES)


def test_frequent_words_get_a_classifier_and_count_as_one_of_ten(words):
    assert words.names == ("person", "dog")
    both, neither = words.bias + np.array([[1, 1, -1, -1, 0, 0], [-1, -1, -1, -1, 0, 0]]) @ words.weights
    assert (both > 0).all()
    assert (neither < 0).all()
    nothing_known = words.bias + np.zeros(6) @ words.weights
    assert nothing_known[0] < 0  # although nine of ten training photos show a person


def test_labels_match_a_word_its_plural_or_its_synonym(words):
    labels = ["People", "humans", "dogs", "dog", "hot dog", "cat"]
    weights, bias = CaptionWords.load(words.arrays(), words.names, 6).of_labels(labels)
    np.testing.assert_array_equal(weights[:, :4], words.weights[:, [0, 0, 1, 1]])
    np.testing.assert_array_equal(bias, [*words.bias[[0, 0, 1, 1]], -100, -100])
    assert not weights[:, 4:].any()
    plurals = ["family", "Families", "children", "kids", "bike"]
    names = ("family", "child", "bicycle")
    _, bias = CaptionWords(names, np.zeros((1, 3)), np.arange(3)).of_labels(plurals)
    np.testing.assert_array_equal(bias, [0, 0, 1, 1, 2])


def test_no_word_of_few_captions_gets_a_classifier():
    words = fit_caption_words(np.eye(19, dtype=np.float32), np.ones((19, 4), bool), NAMES)
    weights, bias = CaptionWords.load(words.arrays(), words.names, 19).of_labels(["dog"])
    assert (weights.shape, bias) == ((19, 1), -100)
