import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aia_jax.data.pipeline import epoch_end, eval_batches, train_batches
from aia_jax.utils.errors import InputError

ROWS = 10
ARRAYS = {"image": np.arange(ROWS * 12).reshape(ROWS, 2, 2, 3), "target": np.eye(ROWS, dtype=np.uint8)}


def _indices(count: int, **options) -> np.ndarray:
    """The first `count` global indices of the training stream, starting at `start_step`."""
    options = {"batch_size": 4, "seed": 3} | options
    batches = train_batches({}, ROWS, **options)
    return np.concatenate([batch["index"] for batch in itertools.islice(batches, -(-count // 4))])[:count]


def test_every_epoch_is_another_permutation_that_depends_on_the_seed():
    epochs = _indices(5 * ROWS).reshape(5, ROWS)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(ROWS), (5, 1)))
    assert len(np.unique(epochs, axis=0)) == 5
    assert not np.array_equal(epochs[0], np.arange(ROWS))
    np.testing.assert_array_equal(_indices(40), _indices(40))
    assert not np.array_equal(_indices(40), _indices(40, seed=4))


@pytest.mark.parametrize("start_step", [1, 2, 3, 7, 25])
def test_a_resumed_stream_continues(start_step):
    np.testing.assert_array_equal(_indices(40, start_step=start_step), _indices(4 * start_step + 40)[4 * start_step :])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_are_gathered_by_their_index(num_workers):
    batches = train_batches(ARRAYS, ROWS, batch_size=4, seed=3, num_workers=num_workers)
    taken = list(itertools.islice(batches, 5))
    batches.close()
    np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in taken]), _indices(20))
    for batch in taken:
        assert batch["index"].dtype == np.int32
        for name, array in ARRAYS.items():
            assert batch[name].dtype == array.dtype
            np.testing.assert_array_equal(batch[name], array[batch["index"]])


@pytest.mark.parametrize("process_count", [2, 4])
@pytest.mark.parametrize("start_step", [0, 3])
def test_slices_of_the_processes_tile_the_batch(process_count, start_step):
    def stream(**options):
        batches = train_batches(ARRAYS, ROWS, batch_size=4, seed=3, start_step=start_step, **options)
        return list(itertools.islice(batches, 6))

    parts = [stream(process_index=index, process_count=process_count) for index in range(process_count)]
    for whole, *slices in zip(stream(), *parts, strict=True):
        for name in ("index", *ARRAYS):
            assert all(len(part[name]) == 4 // process_count for part in slices)
            np.testing.assert_array_equal(np.concatenate([part[name] for part in slices]), whole[name])


@pytest.mark.parametrize(
    ("batch_size", "process_count", "num_workers"),
    [(4, 1, 0), (4, 2, 0), (10, 1, 0), (12, 3, 0), (30, 1, 0), (4, 1, 2)],
)
def test_evaluation_visits_each_row_once_in_order(batch_size, process_count, num_workers):
    options = {"batch_size": batch_size, "process_count": process_count, "num_workers": num_workers}
    parts = [list(eval_batches(ARRAYS, ROWS, process_index=index, **options)) for index in range(process_count)]
    assert {len(part) for part in parts} == {-(-ROWS // batch_size)}
    batches = [batch for step in zip(*parts, strict=True) for batch in step]
    for batch in batches:
        assert batch["mask"].dtype == bool
        assert len(batch["mask"]) == batch_size // process_count
        assert not batch["index"][~batch["mask"]].any()
        np.testing.assert_array_equal(batch["image"], ARRAYS["image"][batch["index"]])
    valid = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(valid, np.arange(ROWS))


def test_bad_batch_sizes():
    with pytest.raises(InputError, match=r"batch_size=6 must be a positive multiple of the 4 process"):
        train_batches(ARRAYS, ROWS, batch_size=6, seed=0, process_count=4)
    with pytest.raises(InputError, match=r"batch_size=0"):
        eval_batches(ARRAYS, ROWS, batch_size=0)
    with pytest.raises(InputError, match=r"batch_size=11 is larger than the training data of 10 images"):
        train_batches(ARRAYS, ROWS, batch_size=11, seed=0)
    with pytest.raises(InputError, match="no images"):
        eval_batches({}, 0, batch_size=4)


def test_epoch_end():
    assert [epoch_end(epoch, 10, 4) for epoch in range(5)] == [0, 2, 5, 7, 10]


_ENDLESS = """
import numpy as np
from aia_jax.data.pipeline import train_batches

if __name__ == "__main__":
    batches = train_batches({"a": np.arange(40)}, 40, batch_size=4, seed=0, num_workers=1)
    next(batches)
    print("ready", flush=True)
    while True:
        next(batches)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc to list child processes")
def test_workers_end_when_their_process_is_killed(tmp_path):
    (tmp_path / "endless.py").write_text(_ENDLESS)
    command = [sys.executable, tmp_path / "endless.py"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "ready\n"
        lists = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")]
        process.kill()
    children = " ".join(lists).split()
    assert children
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
