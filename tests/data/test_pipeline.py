import itertools

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


def test_rows_are_gathered_by_their_index():
    batches = train_batches(ARRAYS, ROWS, batch_size=4, seed=3)
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
    ("batch_size", "process_count"),
    [(4, 1), (4, 2), (10, 1), (12, 3), (30, 1)],
)
def test_evaluation_visits_each_row_once_in_order(batch_size, process_count):
    options = {"batch_size": batch_size, "process_count": process_count}
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
