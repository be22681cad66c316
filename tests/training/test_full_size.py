"""One training step and one prediction of TResNet-M at 448 px, its published size, on real photos in bfloat16."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from aia_jax.configs import corel5k
from aia_jax.data.annotation.annotations import read_annotations
from aia_jax.data.image_decoding import decode_image
from aia_jax.tasks.registry import make_task
from aia_jax.training.model_arrays import split_model
from aia_jax.training.optimizer import make_optimizer
from aia_jax.training.sharding import data_mesh
from aia_jax.training.state import TrainState
from aia_jax.training.step import make_predict_step, make_train_step
from tests.helpers.untrained import random_weights


@pytest.mark.slow
def test_tresnet_m_at_448_px_trains_and_predicts(corel5k_root):
    config = corel5k.get_config()
    config.data.root = str(corel5k_root)
    annotations = read_annotations(corel5k_root, "corel5k", "test")
    images = [decode_image(path.read_bytes(), config.data.image_size) for path in annotations.image_paths[:2]]
    batch = {"image": np.stack(images), "target": annotations.targets[:2]}
    task, mesh, optimizer = make_task(config), data_mesh(jax.devices()[:1]), make_optimizer(config.optimizer, 100)
    state = TrainState.create(random_weights(task), optimizer)
    graphdef, _ = split_model(nnx.eval_shape(lambda: task.build_model(nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 40_106_628  # and 266,240 frozen

    before = jax.device_get(state.params)
    step = make_train_step(graphdef, task.loss, optimizer, ema_decay=config.ema_decay, seed=config.seed, mesh=mesh)
    state, metrics = step(state, batch, {})
    assert np.isfinite(float(metrics["loss"]))
    assert float(optax.tree.norm(jax.tree.map(np.subtract, before, jax.device_get(state.params)))) > 0

    out = make_predict_step(graphdef, task.explain, mesh)(state.weights("ema"), {"image": batch["image"]})
    assert out["scores"].shape == (2, 260)
    assert out["attention"].shape == (2, 260, 14, 14)
    np.testing.assert_allclose(out["attention"].sum((2, 3)), 1, rtol=1e-2)
