import io
import itertools
import re

import jax
import numpy as np
import pytest
from tqdm import tqdm

from aia_jax.training import prediction, sharding
from aia_jax.training.prediction import predict_split

SIZE = 4


def _batches(num_rows: int):
    """Yields rows of two pixels whose value is the row number; padding repeats row 0."""
    for start in range(0, num_rows, SIZE):
        index = np.arange(start, start + SIZE)
        mask = index < num_rows
        rows = np.where(mask, index, 0).astype(np.uint8)
        yield {"mask": mask, "image": np.stack([rows, rows], axis=1)}


def _step(factors: dict, batch: dict) -> dict:
    assert set(batch) == {"image"}
    return {"sums": batch["image"].sum(axis=1) * factors["factor"]}


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("num_rows", [1, 8, 41])
def test_each_row_is_predicted_once_and_in_order(devices, num_rows):
    mesh = sharding.data_mesh(jax.devices()[:devices])
    weights = [{"factor": np.float32(1)}, {"factor": np.float32(10)}]
    plain, scaled = predict_split(jax.jit(_step), weights, _batches(num_rows), mesh)
    np.testing.assert_array_equal(plain["sums"], 2 * np.arange(num_rows))
    np.testing.assert_array_equal(scaled["sums"], 20 * np.arange(num_rows))


def test_batches_are_dispatched_ahead_and_each_is_transferred_once(monkeypatch):
    events = []

    def logged(name: str, function):
        def call(*args):
            events.append(name)
            return function(*args)

        return call

    monkeypatch.setattr(sharding, "put_batch", logged("transfer", sharding.put_batch))
    monkeypatch.setattr(jax, "device_get", logged("fetch", jax.device_get))
    mesh, weights = sharding.data_mesh(jax.devices()[:1]), [{"factor": np.float32(1)}] * 2
    predict_split(logged("compute", jax.jit(_step)), weights, _batches(9 * SIZE), mesh)
    assert events[:15] == ["transfer", "compute", "compute"] * 5
    assert [name for name, _ in itertools.groupby(events[15:])] == ["fetch", "transfer", "compute"] * 4 + ["fetch"]
    assert {name: events.count(name) for name in set(events)} == {"transfer": 9, "compute": 18, "fetch": 9}


def test_two_splits_compile_step_and_mask_once():
    mesh = sharding.data_mesh(jax.devices()[:2])
    prediction._replicate.cache_clear()  # other tests may have used it with other shapes
    step = jax.jit(lambda weights, batch: _step(weights, batch), out_shardings=sharding.replicated(mesh))
    for num_rows in (5, 10):
        predict_split(step, [{"factor": np.float32(1)}], _batches(num_rows), mesh)
    assert step._cache_size() == 1
    assert prediction._replicate(mesh)._cache_size() == 1


def test_the_progress_bar_counts_images(monkeypatch):
    shown = io.StringIO()
    forced = {"file": shown, "disable": False, "leave": True}
    monkeypatch.setattr(prediction, "tqdm", lambda **options: tqdm(**options | forced))
    mesh = sharding.data_mesh(jax.devices()[:1])
    predict_split(jax.jit(_step), [{"factor": np.float32(1)}], _batches(9 * SIZE - 1), mesh)
    assert re.search(r"predict: 35img \[.*img/s\]", shown.getvalue())
