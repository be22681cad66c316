"""The head whose label queries are texts: trained labels, and labels added after training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.layers.common import l2norm
from aia_jax.models.text_head import OpenTextHead, TextHead

LABELS, FEATURES, CLASSES, WIDTH = 3, 5, 4, 384


def normalised(rng, *shape):
    return np.asarray(l2norm(rng.standard_normal(shape, np.float32)))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def head(rng):
    head = TextHead(LABELS, FEATURES, dropout=0.0, rngs=nnx.Rngs(0))
    head.embeddings[...] = normalised(rng, LABELS, WIDTH)
    head.project.kernel[...] = rng.standard_normal((FEATURES, WIDTH), np.float32)
    return head


def test_logits_are_a_bilinear_form_of_image_and_text(head, rng):
    head.scale[...], head.offset[...] = jnp.array([2.0]), jnp.array([-1.0])
    features = rng.standard_normal((2, 4, 4, FEATURES), np.float32)
    logits, maps = head(features, train=False)
    mean = features.mean(axis=(1, 2))
    expected = 2 * (mean @ head.project.kernel[...] + head.project.bias[...]) @ head.embeddings[...].T - 1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert maps == {}


def test_all_but_the_embeddings_and_references_is_trained(head, rng):
    features = jnp.asarray(rng.standard_normal((2, 4, 4, FEATURES), np.float32))
    gradients = nnx.grad(lambda head: head(features, train=True)[0][:, 0].sum())(head)
    found = {".".join(map(str, path)): value for path, value in nnx.to_flat_state(gradients)}
    assert sorted(found) == ["offset", "project.bias", "project.kernel", "scale"]
    assert all(np.any(value[...]) for value in found.values())


def test_the_first_training_images_are_kept(head, rng):
    batches = rng.uniform(0.1, 1, (6, 100, 1, 1, FEATURES)).astype(np.float32)
    head(batches[5], train=False)
    assert not head.references[...].any()
    for batch in batches:
        head(batch, train=True)
    rows = batches.reshape(-1, FEATURES)
    np.testing.assert_array_equal(head.references[:412], rows[:412])
    np.testing.assert_array_equal(head.references[412:], rows[500:600])
    head(batches[0] + 1, train=True)
    np.testing.assert_array_equal(head.references[412:], rows[500:600])


def test_an_added_label_has_the_standardised_scores_of_the_bilinear_form_and_of_conse(head, rng):
    references = rng.uniform(0.1, 1, (40, FEATURES)).astype(np.float32)
    head(references[:, None, None], train=True)
    kernel, bias = rng.standard_normal((FEATURES, CLASSES), np.float32), rng.standard_normal(CLASSES, np.float32)
    classes, labels = normalised(rng, CLASSES, WIDTH), normalised(rng, 3, WIDTH)
    opened = OpenTextHead(head, (kernel, bias), classes, labels, np.array([-1, 2, -1]))
    pooled = rng.uniform(0.1, 1, (6, FEATURES)).astype(np.float32)
    logits, _ = opened(pooled[:, None, None], train=False)
    np.testing.assert_allclose(logits[:, 1], head(pooled[:, None, None], train=False)[0][:, 2], rtol=1e-5, atol=1e-5)

    def scores(pooled, label):
        bilinear = (pooled @ head.project.kernel[...]) @ labels[label]
        similar = np.exp(10 * classes @ labels[label])
        return np.stack([bilinear, np.log(jax.nn.softmax((pooled @ kernel + bias) / 2) @ similar)])

    for label in (0, 2):
        there = scores(references, label)
        standardised = (scores(pooled, label) - there.mean(1, keepdims=True)) / there.std(1, keepdims=True)
        np.testing.assert_allclose(logits[:, label], 0.37 * standardised.sum(0) - 1.65, rtol=1e-3, atol=1e-3)
