import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.amc import AMC
from aia_jax.models.amc_shortlist import rough_scores, summarize


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modalities": "visual"},
        {"modalities": "keywords"},
        {"keyword_attention": False},
        {"modality_attention": False},
    ],
)
def test_rough_scores_are_those_of_the_model_without_visual_attention(options):
    rng = np.random.default_rng(0)
    model = AMC(9, 7, 5, word_size=6, embed_size=8, visual_attention=False, rngs=nnx.Rngs(0), **options)
    model.bilinear[...] *= 10
    images = model.encode_images(
        jnp.asarray(rng.normal(size=(4, 3, 2, 5)).astype(np.float32)),
        jnp.asarray(rng.integers(0, 7, (4, 3))),
        jnp.array([3, 1, 2, 0]),
    )
    queries = model.encode_queries(jnp.asarray(rng.integers(0, 9, (3, 2))), jnp.array([1, 2, 2]))
    expected = model.attend(images, queries)["score"]
    found = rough_scores(model, summarize(model, images), queries)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
