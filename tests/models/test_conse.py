import math

import numpy as np
import pytest

from aia_jax.data.words.imagenet import imagenet_classes
from aia_jax.models.conse import class_agreement, class_probabilities, conse_scores, label_statistics
from aia_jax.models.layers.common import l2norm
from aia_jax.tasks.text_encoder import TextEncoder
from tests.helpers.text_model import needs_text_model


@pytest.fixture
def example():
    generator = np.random.default_rng(0)
    logits = 3 * generator.standard_normal((6, 5), np.float32)
    classes, labels = (np.asarray(l2norm(generator.standard_normal((count, 8), np.float32))) for count in (5, 3))
    return logits, classes, labels


def loop(logits, classes, labels):
    scores = np.zeros((len(logits), len(labels)))
    for image, row in enumerate(logits.tolist()):
        total = sum(math.exp(logit / 2) for logit in row)
        for label, text in enumerate(labels):
            for logit, name in zip(row, classes, strict=True):
                scores[image, label] += math.exp(logit / 2) / total * math.exp(10 * float(name @ text))
    return scores


def test_scores_equal_a_loop_over_the_formula(example):
    logits, classes, labels = example
    scores = conse_scores(class_probabilities(logits), classes, labels)
    np.testing.assert_allclose(scores, loop(*example), rtol=1e-5)


def test_statistics_standardise_the_log_scores_of_each_label(example):
    logits, classes, labels = example
    mean, deviation = label_statistics(class_probabilities(logits), classes, labels)
    standardised = (np.log(loop(*example)) - mean) / deviation
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standardised.std(axis=0), 1, rtol=1e-4)


def test_agreement_is_the_probability_of_the_classes_of_a_label():
    angles = np.array([0.0, 0.1, 1.2, 1.5, 3.0])  # two classes are close to the first label, none to the second
    classes = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array([[np.cos(-0.05), np.sin(-0.05)], [np.cos(4.5), np.sin(4.5)]])
    values = np.exp(15 * classes @ labels[0])
    weights = np.minimum(1, values / (np.sum(values**2) / np.sum(values)))
    agreement = np.asarray(class_agreement(np.eye(5), classes, labels))
    np.testing.assert_allclose(agreement[:, 0], weights, rtol=1e-4)
    assert agreement[:2, 0].min() > 0.9
    assert agreement[2:, 0].max() < 0.01
    assert not agreement[:, 1].any()


@needs_text_model
def test_a_photo_of_a_class_has_the_label_that_names_it():
    classes = imagenet_classes()
    labels = ["a cat", "a cup of coffee", "a motorcycle", "a castle"]
    places = [[one.name for one in classes].index(name) for name in ("tabby", "espresso", "moped", "palace")]
    encoder = TextEncoder()
    class_texts = encoder.encode([classes[place].text for place in places])["sentence"]
    scores = conse_scores(np.eye(4), class_texts, encoder.encode(labels)["sentence"])
    assert np.argmax(scores, axis=1).tolist() == [0, 1, 2, 3]
