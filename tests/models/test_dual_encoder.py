import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.configs import dual_encoder
from aia_jax.losses.retrieval import contrastive, pairwise_sigmoid
from aia_jax.models.dual_encoder import WordBag, build_dual_encoder
from aia_jax.training.model_arrays import flat_arrays, split_model

ALL = {"image_features": ("mean", "max", "classes", "queries"), "text_features": ("sentence", "token_max", "words")}


def build(**overrides):
    config = dual_encoder.get_config().model
    config.update(
        {"backbone": "efficientnet_lite0", "embed_size": 16, "query_size": 8, "word_size": 4} | ALL | overrides
    )
    return build_dual_encoder(config, [2000, 2003], rngs=nnx.Rngs(0))


def texts(rng, count=3):
    arrays = {name: rng.normal(size=(count, 384)).astype(np.float32) for name in ("sentence", "token_max")}
    return arrays | {"pieces": rng.choice([101, 102, 2000, 2003, 2005], (count, 5))}


def test_images_and_texts_become_normalised_vectors_of_one_size():
    model, rng = build(), np.random.default_rng(0)
    encode = jax.jit(lambda images: model.encode_images(images, train=False))
    images = encode(jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32))
    captions = model.encode_texts(texts(rng), train=False)
    assert images.shape == (2, 16)
    assert captions.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([images, captions]), axis=1), 1, rtol=1e-5)


def test_only_the_heads_are_trained_beside_a_frozen_backbone():
    _, weights = split_model(build())
    trained = {path.partition(".")[0] for path in flat_arrays({"params": weights["params"]})}
    assert trained == {"image", "text", "queries", "words", "log_scale", "bias"}
    assert "head.linear.kernel" in flat_arrays({"constants": weights["constants"]})
    _, weights = split_model(build(freeze_backbone=False, image_features=("mean",)))
    trained = {path.partition(".")[0] for path in flat_arrays({"params": weights["params"]})}
    assert trained == {"image", "text", "words", "log_scale", "bias", "backbone"}


def test_the_pooled_features_are_mean_maximum_and_log_probabilities_of_the_classes():
    model, maps = build(), np.random.default_rng(1).normal(size=(2, 3, 3, 1280)).astype(np.float32)
    pooled = np.asarray(model.pool(jnp.asarray(maps)))
    np.testing.assert_allclose(pooled[:, :1280], maps.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(pooled[:, 1280:2560], maps.max((1, 2)))
    np.testing.assert_allclose(np.exp(pooled[:, 2560:]).sum(axis=1), 1, rtol=1e-5)


def test_unknown_word_pieces_and_padding_do_not_count():
    words = WordBag([2000, 2003], 4, rngs=nnx.Rngs(0))
    vectors = np.asarray(words.vectors[...])
    found = words(jnp.array([[101, 2003, 102, 0], [2000, 2003, 7, 2003], [5, 6, 0, 0]]))
    np.testing.assert_allclose(found[0], vectors[1], rtol=1e-6)
    np.testing.assert_allclose(found[1], (vectors[0] + 2 * vectors[1]) / 3**0.5, rtol=1e-5)
    np.testing.assert_allclose(found[2], 0)


def test_the_contrastive_losses_are_those_of_a_plain_loop():
    logits = np.random.default_rng(2).normal(size=(4, 4)).astype(np.float32)
    rows = [np.log(np.exp(logits[i]).sum()) - logits[i, i] for i in range(4)]
    columns = [np.log(np.exp(logits[:, i]).sum()) - logits[i, i] for i in range(4)]
    assert float(contrastive(jnp.asarray(logits))) == pytest.approx(np.mean(rows + columns), rel=1e-5)
    pairs = [np.log1p(np.exp(-(1 if i == j else -1) * logits[i, j])) for i in range(4) for j in range(4)]
    assert float(pairwise_sigmoid(jnp.asarray(logits))) == pytest.approx(np.sum(pairs) / 4, rel=1e-5)


def test_dropout_needs_a_key_only_in_training():
    model, rng = build(), np.random.default_rng(0)
    with pytest.raises(ValueError, match="needs a key"):
        model.encode_texts(texts(rng), train=True)
    model.encode_texts(texts(rng), train=True, key=jax.random.key(0))
