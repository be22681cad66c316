"""AMC against the formulas of the paper's figures, written as loops over one query and one image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from aia_jax.models.amc import AMC, RoughScores, summarize
from aia_jax.utils.errors import InputError

NUM_WORDS, NUM_KEYWORDS, FEATURES, WORD_SIZE, SIZE = 7, 6, 5, 4, 8


def build(**options):
    return AMC(NUM_WORDS, NUM_KEYWORDS, FEATURES, word_size=WORD_SIZE, embed_size=SIZE, rngs=nnx.Rngs(3), **options)


class Inputs(NamedTuple):
    maps: np.ndarray
    keywords: np.ndarray
    counts: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    return Inputs(
        maps=rng.normal(size=(3, 4, 3, FEATURES)).astype(np.float32),
        keywords=np.array([[1, 5, 5, 2], [3, 0, 0, 0], [0, 0, 0, 0]]),
        counts=np.array([4, 1, 0]),
        tokens=np.array([[2, 0, 0], [6, 3, 1]]),
        lengths=np.array([1, 3]),
    )


def encode(model, inputs):
    images = model.encode_images(*map(jnp.asarray, inputs[:3]))
    return images, model.encode_queries(*map(jnp.asarray, inputs[3:]))


@nnx.jit
def attend(model, inputs):
    return model.attend(*encode(model, inputs))


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def cosine(a, b):
    return a @ b / ((np.linalg.norm(a) + 1e-8) * (np.linalg.norm(b) + 1e-8))


def by_loops(model, inputs, image, query, size):
    """Score, visual attention, keyword attention and weights of one pair."""

    def linear(layer, x):
        return x @ layer.kernel[...] + (layer.bias[...] if layer.use_bias else 0)

    def rectified(layer, x):
        return np.maximum(np.asarray(linear(layer, x)), 0)

    words = [model.words[...][token] for token in inputs.tokens[query, : inputs.lengths[query]]]
    q = np.mean(words, axis=0)
    q_m, q_prime = rectified(model.matched, q), rectified(model.compared, q)
    kernel = rectified(model.kernel, q).reshape(size, size, SIZE) / np.sqrt(size * size * SIZE)
    height, width, _ = inputs.maps[image].shape
    scale = np.sqrt(np.mean(inputs.maps[image] ** 2))
    v = np.asarray(linear(model.visual, inputs.maps[image] / scale))
    response, before = np.zeros((height, width)), (size - 1) // 2
    for y, x, dy, dx in np.ndindex(height, width, size, size):
        row, column = y + dy - before, x + dx - before
        if 0 <= row < height and 0 <= column < width:
            response[y, x] += v[row, column] @ kernel[dy, dx]
    where = softmax(response)
    v_q = sum(where[cell] * v[cell] for cell in np.ndindex(height, width))
    which, k_q, present = np.zeros(inputs.keywords.shape[1]), np.zeros(SIZE), inputs.counts[image] > 0
    if present:
        own = [np.asarray(model.keywords[...][word]) for word in inputs.keywords[image, : inputs.counts[image]]]
        which[: len(own)] = softmax(
            np.array([linear(model.asking, q) @ model.bilinear[...] / np.sqrt(SIZE) @ e for e in own])
        )
        k_q = sum(p * e for p, e in zip(which, own, strict=False))
    weights = softmax(np.array([cosine(q_prime, v_q), cosine(q_prime, k_q)])) if present else np.array([1.0, 0.0])
    return cosine(q_m, weights[0] * v_q + weights[1] * k_q), where, which, weights


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_formulas_against_loops(inputs, size):
    model = build(kernel_size=size)
    model.kernel.kernel[...] *= 30  # attention is far from even
    model.bilinear[...] *= 10
    found = attend(model, inputs)
    for image in range(3):
        for query in range(2):
            expected = by_loops(model, inputs, image, query, size)
            names = ("score", "visual_attention", "keyword_attention", "weights")
            for name, value in zip(names, expected, strict=True):
                np.testing.assert_allclose(found[name][image, query], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_an_image_without_keywords_is_its_map_alone(inputs):
    found = attend(build(), inputs)
    assert (found["weights"][2] == np.array([1.0, 0.0])).all()
    assert (found["keyword_attention"][2] == 0).all()
    alone = attend(build(modalities="visual"), inputs)
    np.testing.assert_array_equal(found["score"][2], alone["score"][2])


def test_all_weights_sum_to_one_and_those_of_modalities_stay_moderate(inputs):
    found = attend(build(), inputs)
    np.testing.assert_allclose(found["visual_attention"].sum(axis=(2, 3)), 1, rtol=1e-6)
    np.testing.assert_allclose(found["keyword_attention"][:2].sum(axis=2), 1, rtol=1e-6)
    weights = np.asarray(found["weights"])
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    assert ((weights[:2] > 1 / (1 + np.e**2)) & (weights[:2] < 1 / (1 + np.e**-2))).all()
    assert len(np.unique(weights[:2, :, 0])) == 4  # they depend on the query and on the image


def test_padding_of_keywords_and_queries_changes_nothing(inputs):
    wider = inputs._replace(
        keywords=np.pad(inputs.keywords, [(0, 0), (0, 3)], constant_values=4),
        tokens=np.pad(inputs.tokens, [(0, 0), (0, 2)], constant_values=5),
    )
    model = build()
    narrow, wide = attend(model, inputs), attend(model, wider)
    np.testing.assert_allclose(narrow["score"], wide["score"], rtol=1e-6)
    assert (wide["keyword_attention"][..., 4:] == 0).all()


def test_switches(inputs):
    even = attend(build(visual_attention=False), inputs)["visual_attention"]
    np.testing.assert_allclose(even, 1 / 12, rtol=1e-6)
    even = attend(build(keyword_attention=False), inputs)["keyword_attention"]
    np.testing.assert_allclose(even[0], 0.25)
    np.testing.assert_allclose(even[1, :, 0], 1)
    weights = attend(build(modality_attention=False), inputs)["weights"]
    assert (weights[:2] == 0.5).all()
    assert (weights[2, :, 0] == 1).all()
    assert (attend(build(modalities="keywords"), inputs)["weights"] == np.array([0.0, 1.0])).all()
    assert (attend(build(modalities="keywords"), inputs)["score"][2] == 0).all()
    with pytest.raises(InputError, match="unknown 'text'; known: both, visual, keywords"):
        build(modalities="text")


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_blocks_give_what_all_pairs_at_once_do(inputs, block, remat):
    model = build()
    images, queries = encode(model, inputs)
    whole = model.attend(images, queries)["score"]
    np.testing.assert_allclose(model.similarity(images, queries, block=block, remat=remat), whole, rtol=1e-6)


@pytest.mark.parametrize("modalities", ["both", "visual", "keywords"])
def test_gradients_against_finite_differences(inputs, modalities):
    with jax.enable_x64(True):
        model = build(modalities=modalities, dtype=jnp.float64, param_dtype=jnp.float64)
        graphdef, params = nnx.split(model)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

        @jax.jit
        def score(params):
            return (attend(nnx.merge(graphdef, params), inputs)["score"] * jnp.array([[1.0, 2.0]])).sum()

        check_grads(score, (params,), order=1, modes=["rev"], atol=0, rtol=1e-6, eps=1e-6)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(score)(params)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        *({"modalities": modalities} for modalities in ("visual", "keywords")),
        *({switch: False} for switch in ("keyword_attention", "modality_attention")),
    ],
)
def test_rough_scores_are_those_of_the_model_without_visual_attention(inputs, options):
    model = build(visual_attention=False, **options)
    model.bilinear[...] *= 10
    images, queries = encode(model, inputs)
    expected = model.attend(images, queries)["score"]
    summary = jax.device_get(summarize(model, images))
    for number in range(expected.shape[1]):
        rough = RoughScores(model, {name: rows[number : number + 1] for name, rows in queries.items()})
        found = rough.score(rough.products(summary))
        np.testing.assert_allclose(found, expected[:, number], rtol=1e-5, atol=1e-6)
