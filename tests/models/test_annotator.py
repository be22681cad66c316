import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.configs import demo
from aia_jax.models.annotator import ClassifierHead, build_annotator
from aia_jax.models.layers.common import Frozen
from aia_jax.utils.errors import InputError


def _config(**changes) -> ConfigDict:
    config = demo.get_config().model
    sizes = {"hidden_size": 32, "num_heads": 4, "feedforward_size": 64, "dropout": 0.1}
    config.update(sizes | changes)
    return config


def _outputs(config: ConfigDict, images: jax.Array):
    """Shapes and types of what a training-mode call returns for 9 labels."""

    def call(images, key):
        return build_annotator(config, 9, rngs=nnx.Rngs(0))(images, train=True, key=key)

    return jax.eval_shape(call, images, jax.random.key(0))


@pytest.mark.parametrize(("head", "maps"), [("attention", (2, 9, 2, 2)), ("gap", None)])
def test_an_annotator_returns_logits_features_and_maps_with_attention(head, maps):
    logits, out = _outputs(_config(head=head, dtype="bfloat16"), jnp.ones((2, 32, 32, 3)))
    assert (logits.shape, logits.dtype) == ((2, 9), jnp.float32)
    assert (out["attention"].shape if "attention" in out else None) == maps
    assert out["features"].shape == (2, 2, 2, 384)
    assert out["stage1"].dtype == jnp.bfloat16


def test_a_config_with_a_field_of_older_releases_builds():
    config = _config()
    config.gate_kernels = False
    assert _outputs(config, jnp.ones((2, 32, 32, 3)))[0].shape == (2, 9)


@pytest.mark.parametrize(("backbone", "labels", "parameters"), [("m", 260, 40.4e6), ("v2_l", 500, 55.7e6)])
def test_published_sizes(backbone, labels, parameters):
    """Parameters of the published models, trained and frozen."""
    config = _config(backbone=f"tresnet_{backbone}", hidden_size=1024, num_heads=8, feedforward_size=2048)
    model = nnx.eval_shape(lambda: build_annotator(config, labels, rngs=nnx.Rngs(0)))
    count = sum(value.size for value in jax.tree.leaves(nnx.state(model, nnx.Any(nnx.Param, Frozen))))
    assert abs(count - parameters) < 0.05e6


def test_classifier_head_scores_the_mean_feature():
    head = ClassifierHead(2, 3, rngs=nnx.Rngs(0))
    head.linear.kernel[...] = jnp.asarray([[1.0, 0], [0, 1], [1, 1]])
    head.linear.bias[...] = jnp.asarray([0.5, 0])
    features = jnp.asarray([[1.0, 2, 3], [3, 4, 5]]).reshape(1, 1, 2, 3)
    np.testing.assert_allclose(head(features, train=False)[0], [[6.5, 7.0]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"dropout 0.3 needs a key"):
        head(features, train=True)


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [("backbone", "resnet50", "tresnet_m"), ("head", "mlp", "attention, gap"), ("dtype", "float16", "bfloat16")],
)
def test_unknown_names_are_refused_with_the_known_ones(field, value, known):
    with pytest.raises(InputError, match=rf"model\.{field}: unknown '{value}'; known: .*{known}"):
        build_annotator(_config(**{field: value}), 9, rngs=nnx.Rngs(0))
