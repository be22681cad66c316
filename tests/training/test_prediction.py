import io
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tqdm import tqdm

from aia_jax.training import prediction, sharding
from aia_jax.training.model_arrays import split_model
from aia_jax.training.prediction import Predictor

SIZE = 4


class Scale(nnx.Module):
    def __init__(self, factor: float):
        self.factor = nnx.Param(jnp.float32(factor))


def predict_sums(model: Scale, batch: dict) -> dict:
    assert set(batch) == {"image"}
    return {"sums": batch["image"].sum(axis=1) * model.factor[...]}


def make(num_devices: int) -> tuple[Predictor, list[dict]]:
    """Returns a predictor, and weights with the factors 1 and 10."""
    (graphdef, one), (_, ten) = (split_model(Scale(factor)) for factor in (1, 10))
    return Predictor(graphdef, sharding.data_mesh(jax.devices()[:num_devices])), [one, ten]


def batches(num_rows: int):
    """Yields rows of two pixels whose value is the row number; padding repeats row 0."""
    for start in range(0, num_rows, SIZE):
        index = np.arange(start, start + SIZE)
        mask = index < num_rows
        rows = np.where(mask, index, 0).astype(np.uint8)
        yield {"mask": mask, "image": np.stack([rows, rows], axis=1)}


@pytest.mark.parametrize(("num_devices", "num_rows"), [(1, 1), (1, 41), (4, 8), (4, 41)])
def test_each_row_is_predicted_once_and_in_order(num_devices, num_rows):
    predictor, weights = make(num_devices)
    plain, scaled = predictor(predict_sums, weights, batches(num_rows))
    np.testing.assert_array_equal([plain["sums"], scaled["sums"]], [[2], [20]] * np.arange(num_rows))


def test_batches_are_dispatched_ahead_and_each_is_transferred_once(monkeypatch):
    events = []

    def logged(name: str, function):
        def call(*args):
            events.append(name)
            return function(*args)

        return call

    make_step = prediction.make_predict_step
    monkeypatch.setattr(prediction, "make_predict_step", lambda *a, **k: logged("compute", make_step(*a, **k)))
    monkeypatch.setattr(sharding, "put_batch", logged("transfer", sharding.put_batch))
    monkeypatch.setattr(jax, "device_get", logged("fetch", jax.device_get))
    predictor, weights = make(1)
    predictor(predict_sums, weights, batches(9 * SIZE))
    assert events[:15] == ["transfer", "compute", "compute"] * 5
    assert [name for name, _ in itertools.groupby(events[15:])] == ["fetch", "transfer", "compute"] * 4 + ["fetch"]
    assert {name: events.count(name) for name in set(events)} == {"transfer": 9, "compute": 18, "fetch": 9}


def test_two_splits_compile_step_and_mask_once():
    predictor, weights = make(2)
    for num_rows in (5, 10):
        predictor(predict_sums, weights, batches(num_rows))
    assert predictor._steps[predict_sums]._cache_size() == 1
    assert predictor._replicate._cache_size() == 1


def test_the_progress_bar_counts_images(monkeypatch):
    shown = io.StringIO()
    forced = {"file": shown, "disable": False, "leave": True}
    monkeypatch.setattr(prediction, "tqdm", lambda **options: tqdm(**options | forced))
    predictor, weights = make(1)
    predictor(predict_sums, weights, batches(9 * SIZE - 1))
    assert re.search(r"predict: 35img \[.*img/s\]", shown.getvalue())
