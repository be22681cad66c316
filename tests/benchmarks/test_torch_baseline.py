"""The PyTorch side of the benchmarks computes the same loss, Adam update, averages and scores as this project."""

import importlib

import jax
import numpy as np
import pytest

from aia_jax.configs import corel5k
from aia_jax.losses import annotation
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training.model_arrays import flat_arrays, split_model
from aia_jax.training.optimizer import make_optimizer
from aia_jax.training.sharding import data_mesh
from aia_jax.training.state import TrainState
from aia_jax.training.step import make_predict_step, make_train_step
from aia_jax.utils.errors import InputError
from benchmarks.step import TOTAL_STEPS, random_batch
from tests.helpers.references import model_of, needs_torch, our_arrays, random_state, relative_error
from tests.helpers.small_annotator import builder

pytestmark = needs_torch
LABELS = 260


@pytest.fixture(scope="module")
def oracles():
    """`tests.helpers.torch_oracles`, which imports timm also where torchvision is not whole."""
    return importlib.import_module("tests.helpers.torch_oracles")


@pytest.fixture(scope="module")
def torch(oracles):
    return oracles.torch


@pytest.fixture(scope="module")
def baseline(oracles):
    """The PyTorch side of the benchmarks."""
    return importlib.import_module("benchmarks.torch_baseline")


@pytest.fixture
def pair(oracles):
    """A small annotator in torch, and ours with the same weights."""
    state = random_state(builder(LABELS), "tresnet", seed=1)
    return oracles.small_annotator(state, LABELS), model_of(builder(LABELS), state, "tresnet")


@pytest.fixture
def config():
    config = corel5k.get_config()
    config.batch_size, config.data.image_size, config.data.flips = 4, 64, "none"
    config.model.dtype, config.ema_decay = "float32", 0.9
    config.optimizer.max_learning_rate, config.optimizer.initial_div = 1e-2, 1.0
    config.optimizer.eps = 1e-3  # so that rounding noise in small gradients does not decide the update
    return config


def tensors(torch, config, *, channels_last=False):
    batch = random_batch(config)
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
    form = torch.channels_last if channels_last else torch.contiguous_format
    return batch, images.contiguous(memory_format=form), torch.from_numpy(batch["target"])


@pytest.mark.parametrize("name", annotation.PRESETS)
def test_losses_equal_those_of_this_project(torch, baseline, name):
    rng = np.random.default_rng(0)
    logits = (5 * rng.standard_normal((8, 9))).astype(np.float32)
    targets = (rng.random((8, 9)) < 0.3).astype(np.float32)
    theirs = baseline.annotation_loss(torch.from_numpy(logits), torch.from_numpy(targets), **annotation.PRESETS[name])
    np.testing.assert_allclose(theirs, annotation.annotation_loss(name)(logits, targets), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_training_step_equals_that_of_this_project(torch, oracles, baseline, pair, config, channels_last):
    theirs, ours = pair
    batch, images, targets = tensors(torch, config, channels_last=channels_last)
    optimizer = make_optimizer(config.optimizer, TOTAL_STEPS)
    graphdef, weights = split_model(ours)
    state = TrainState.create(weights, optimizer)
    options = {"ema_decay": config.ema_decay, "seed": 0, "mesh": data_mesh(jax.devices()[:1])}
    step = make_train_step(graphdef, AnnotationTask(config).loss, optimizer, **options)
    with jax.default_matmul_precision("highest"):
        state, metrics = step(state, batch, {})
    peer = baseline.TrainingPeer(theirs, config, baseline.Variant(channels_last, False), torch.device("cpu"))
    assert float(peer.step(images, targets)) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    for name in ("raw", "ema"):
        arrays = flat_arrays(state.weights(name))
        expected = our_arrays(builder(LABELS), oracles.arrays_of(peer.model), "tresnet")
        assert arrays.keys() == expected.keys()
        for path, value in arrays.items():
            assert relative_error(value, expected[path]) <= 1e-4, (name, path)
        peer.model.load_state_dict(peer.model.state_dict() | peer.averages)


def test_scores_equal_those_of_this_project(torch, baseline, pair, config):
    theirs, ours = pair
    batch, images, _ = tensors(torch, config)
    graphdef, weights = split_model(ours)
    step = make_predict_step(graphdef, AnnotationTask(config).predict, data_mesh(jax.devices()[:1]))
    with jax.default_matmul_precision("highest"):
        expected = step(weights, {"image": batch["image"]})["scores"]
    peer = baseline.InferencePeer(theirs, config, baseline.Variant(False, False), torch.device("cpu"))
    scores = peer.step(images)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_flips_apply_to_whole_images(torch, baseline, config):
    _, images, _ = tensors(torch, config)
    torch.manual_seed(0)
    flipped = baseline._random_flips(images, "both")
    forms = [images, images.flip(2), images.flip(3), images.flip((2, 3))]
    chosen = [[torch.equal(row, form[index]) for form in forms] for index, row in enumerate(flipped)]
    assert all(any(row) for row in chosen)
    assert sum(row[0] for row in chosen) < len(chosen)


def test_a_measured_peer_reports_its_rates(baseline, pair, config, monkeypatch):
    monkeypatch.setattr(baseline, "build_model", lambda _: pair[0])
    config.batch_size, config.data.image_size, config.data.flips = 2, 32, "both"
    row = baseline.measure_peer(config, baseline.Variant(True, False), "cpu", False, 5, 0.0)
    assert row["seconds_per_step"]["windows"] == 5
    assert row["images_per_second"]["min"] <= row["images_per_second"]["median"] <= row["images_per_second"]["max"]
    assert row["compile_seconds"] is None
    assert row["peak_gb"] is None


def test_heads_of_both_systems_are_built(torch, baseline, config):
    config.model.head, config.model.backbone = "gap", "efficientnet_lite0"
    assert baseline.build_model(config).eval()(torch.zeros(1, 3, 32, 32))[0].shape == (1, LABELS)


def test_options_that_the_peer_lacks_are_refused(baseline, config):
    with pytest.raises(InputError, match="no device to compare with JAX's tpu"):
        baseline.torch_device("tpu")
    config.model.backbone = "tresnet_tiny"
    with pytest.raises(InputError, match="timm has no tresnet_tiny"):
        baseline.build_model(config)
