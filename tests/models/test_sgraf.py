import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.layers.common import l2norm
from aia_jax.models.sgraf import SGRAF
from aia_jax.models.sgraf_reasoning import AttentionFiltration
from aia_jax.training import sharding
from aia_jax.training.model_arrays import merge_model, split_model
from aia_jax.utils.errors import InputError

IMAGES, CAPTIONS, REGIONS, FEATURES, WORDS = 5, 8, 6, 7, 30
LENGTHS = np.array([13, 11, 9, 9, 7, 4, 3, 3], np.int32)


def small_model(reasoning, **options):
    sizes = {"num_regions": REGIONS, "embed_size": 12, "word_size": 10, "similarity_size": 8}
    return SGRAF(WORDS, FEATURES, **sizes, reasoning=reasoning, **options, rngs=nnx.Rngs(0))


def pairs(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, WORDS, (CAPTIONS, LENGTHS.max())).astype(np.int32)
    tokens[np.arange(tokens.shape[1]) >= LENGTHS[:, None]] = 0
    return rng.normal(size=(IMAGES, REGIONS, FEATURES)).astype(np.float32), tokens


def similarity(model, features, tokens, lengths, *, train=False, block=1000):
    """Scores `[C, I]`. Training updates the running statistics of the model."""

    @nnx.jit
    def score(model):
        images = model.encode_images(features, train=train, key=jax.random.key(1))
        captions = model.encode_captions(tokens, lengths, train=train, key=jax.random.key(2))
        return model.similarity(images, captions, lengths, train=train, block=block)

    return np.asarray(score(model))


@pytest.mark.parametrize("reasoning", ["sgr", "saf"])
def test_a_score_depends_on_its_own_image_and_caption_alone(reasoning):
    model, (features, tokens) = small_model(reasoning), pairs()
    scores = similarity(model, features, tokens, LENGTHS)
    assert scores.shape == (CAPTIONS, IMAGES)
    assert ((scores > 0) & (scores < 1)).all()
    for caption in (0, 6):
        own = slice(caption, caption + 1)
        alone = similarity(model, features[2:3], tokens[own, : LENGTHS[caption]], LENGTHS[own])
        np.testing.assert_allclose(alone[0, 0], scores[caption, 2], atol=1e-6)
    longer = np.pad(tokens, [(0, 0), (0, 9)])
    garbage = np.where(longer == 0, 3, longer)
    np.testing.assert_allclose(similarity(model, features, garbage, LENGTHS), scores, atol=1e-6)


def test_outputs_of_a_text_encoder_replace_word_ids():
    model, (features, tokens) = small_model("saf", text="minilm"), pairs()
    outputs = np.random.default_rng(1).normal(size=(*tokens.shape, 384)).astype(np.float16)
    scores = similarity(model, features, outputs, LENGTHS)
    for caption in (0, 6):
        own = slice(caption, caption + 1)
        alone = similarity(model, features[2:3], outputs[own, : LENGTHS[caption]], LENGTHS[own])
        np.testing.assert_allclose(alone[0, 0], scores[caption, 2], atol=1e-6)
    words, whole = model.encode_captions(jnp.array(outputs), LENGTHS, train=False)
    mask = np.arange(words.shape[1]) < LENGTHS[:, None]
    np.testing.assert_allclose(jnp.linalg.norm(words, axis=-1), mask, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(whole, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("reasoning", ["sgr", "saf"])
@pytest.mark.parametrize("train", [False, True])
def test_blocks_give_what_the_whole_gives(reasoning, train):
    features, tokens = pairs()
    whole, running = None, None
    for block in (1000, 2 * IMAGES):
        model = small_model(reasoning)
        scores = similarity(model, features, tokens, LENGTHS, train=train, block=block)
        statistics = split_model(model)[1]["stats"]
        whole, running = (scores, statistics) if whole is None else (whole, running)
        np.testing.assert_allclose(scores, whole, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), statistics, running)


@pytest.mark.parametrize("reasoning", ["sgr", "saf"])
def test_gradients_are_finite_and_the_same_in_blocks_and_recomputed(reasoning):
    features, tokens = pairs()
    graphdef, weights = split_model(small_model(reasoning))

    def loss(params, block, **options):
        model = merge_model(graphdef, {**weights, "params": params})
        images = model.encode_images(features, train=True, key=jax.random.key(1))
        captions = model.encode_captions(tokens, LENGTHS, train=True, key=jax.random.key(2))
        return jnp.square(model.similarity(images, captions, LENGTHS, train=True, block=block, **options)).sum()

    plain = jax.jit(lambda params: jax.grad(loss)(params, 1000))(weights["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(plain))
    blocks = jax.jit(functools.partial(jax.grad(loss), block=IMAGES, remat=True))(weights["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), blocks, plain)


@pytest.mark.parametrize("reasoning", ["sgr", "saf"])
def test_captions_split_over_devices_score_the_same(reasoning):
    model, (features, tokens) = small_model(reasoning), pairs()
    expected = similarity(model, features, tokens, LENGTHS, block=IMAGES)
    graphdef, weights = split_model(model)
    mesh = sharding.data_mesh(jax.devices()[:4])

    def score(features, tokens, lengths):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            model = merge_model(graphdef, weights)
            captions = model.encode_captions(tokens, lengths, train=False)
            images = model.encode_images(features, train=False)
            return model.similarity(images, captions, lengths, train=False, block=IMAGES)

    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    step = jax.jit(score, in_shardings=(whole, rows, rows), out_shardings=whole)
    np.testing.assert_allclose(step(features, tokens, LENGTHS), expected, atol=1e-6)


def test_running_statistics_move_caption_by_caption():
    filtration = AttentionFiltration(4, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    statistics = np.array([[1.0, 2.0], [-3.0, 0.5], [10.0, 4.0]], np.float32)
    mean, var = 0.0, 1.0
    for row in statistics:
        mean, var = 0.9 * mean + 0.1 * row[0], 0.9 * var + 0.1 * row[1]
    filtration.update(jnp.asarray(statistics))
    np.testing.assert_allclose([filtration.norm.mean[0], filtration.norm.var[0]], [mean, var], rtol=1e-6)


def test_dropout_differs_by_key_and_needs_one():
    model, (_, tokens) = small_model("saf"), pairs()
    one, other = (model.encode_captions(tokens, LENGTHS, train=True, key=jax.random.key(seed))[0] for seed in (0, 1))
    assert np.abs(one - other).max() > 0.01
    with pytest.raises(ValueError, match="needs a key"):
        model.encode_captions(tokens, LENGTHS, train=True)


def test_l2norm_of_zeros_has_a_gradient():
    value, grad = jax.value_and_grad(lambda x: l2norm(x).sum())(jnp.zeros(3))
    assert value == 0
    np.testing.assert_allclose(grad, 1e8)  # of x / (0 + 1e-8)


def test_an_unknown_reasoning_is_refused():
    with pytest.raises(InputError, match="unknown 'sfa'; known: sgr, saf"):
        small_model("sfa")
