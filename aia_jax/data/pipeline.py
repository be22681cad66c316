"""Reads batches of rows with Grain. The order of the rows depends only on the seed and the global step.

The source of a batch is a dict of arrays with the same number of rows, or a function `MakeBatch`. With an empty dict, a
batch has only row indices; this is useful if the device already has all rows.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from aia_jax.utils.errors import InputError

# A function from columns of the global batch, `index` [B] and in evaluation `mask` [B], and from the slice of this
# process's rows, to all columns of these rows.
MakeBatch = Callable[[dict[str, np.ndarray], slice], dict[str, np.ndarray]]


def train_batches(
    arrays: Mapping[str, Any] | MakeBatch,
    num_rows: int,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an endless iterator over the training batches, from batch `start_step` on.

    Each process gets a contiguous slice of every batch. `(seed, e)` determines the permutation of the rows in epoch e.
    Each row occurs exactly once per epoch. A batch may contain the last rows of an epoch and the first of the next.

    Args:
        arrays: a dict of arrays `[N, ...]` that an integer array can index, or a function; see `MakeBatch`.
        batch_size: global batch size B, over all processes.

    Returns:
        Iterator over `{"index": int32 [b], **{name: [b, ...]}}` with b = B / process_count.

    Raises:
        InputError: B is not divisible by `process_count`, or larger than N.
    """
    import grain

    part = _process_slice(batch_size, process_index, process_count)
    if batch_size > num_rows:
        raise InputError(f"config.batch_size={batch_size} is larger than the training data of {num_rows} images")
    order = grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat().batch(batch_size)
    batches = order[start_step:].map(partial(_gather, arrays=arrays, part=part))
    return iter(_read_ahead(batches))


def eval_batches(
    arrays: Mapping[str, Any] | MakeBatch,
    num_rows: int,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an iterator over the evaluation batches, which contain each row once, in order.

    Each process gets a contiguous slice of every batch. Copies of row 0 pad the last batch; their `mask` is False.

    Returns:
        Iterator over `{"index": int32 [b], "mask": bool [b], **{name: [b, ...]}}` with b = B / process_count.

    Raises:
        InputError: B is not divisible by `process_count`, or `num_rows` is 0.
    """
    import grain

    part = _process_slice(batch_size, process_index, process_count)
    if num_rows < 1:
        raise InputError("there are no images to evaluate")
    order = grain.MapDataset.range(-(-num_rows // batch_size) * batch_size).batch(batch_size)
    batches = order.map(partial(_gather, arrays=arrays, part=part, num_rows=num_rows))
    return iter(_read_ahead(batches))


def epoch_end(epoch: int, num_rows: int, batch_size: int) -> int:
    """Returns the number of batches that contain only rows of the first `epoch` epochs."""
    return epoch * num_rows // batch_size


def _read_ahead(dataset: Any, num_threads: int = 4, buffer_size: int = 4) -> Any:
    """Computes the elements of a Grain data set in order and in advance, in threads."""
    import grain  # here, because a machine that only measures the time of steps may lack it

    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer_size))


def map_ahead(function: Callable[[Any], Any], elements: Any, num_workers: int) -> Iterator[Any]:
    """Yields `function(element)` for each element of a sequence, in order. Threads compute results in advance.

    Args:
        num_workers: number of threads; 0: one for each core.
    """
    import grain

    dataset = grain.MapDataset.source(elements).map(function)
    num_threads = num_workers or os.cpu_count() or 1
    with contextlib.closing(iter(_read_ahead(dataset, num_threads, max(num_threads, 32)))) as results:
        yield from results


def _process_slice(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f"batch_size={batch_size} must be a positive multiple of the {process_count} process(es)")
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _gather(
    index: np.ndarray, arrays: Mapping[str, Any] | MakeBatch, part: slice, num_rows: int | None = None
) -> dict[str, np.ndarray]:
    """Returns the columns of a batch for this process's slice `part`. `index` has the row indices of the whole batch.

    If `num_rows` is given, an index of at least `num_rows` is padding: `mask` is False, and the index becomes 0.
    """
    columns = {"index": index}
    if num_rows is not None:
        mask = index < num_rows
        columns = {"index": np.where(mask, index, 0), "mask": mask}
    if callable(arrays):
        return arrays(columns, part)
    columns = {name: column[part] for name, column in columns.items()}
    index = columns["index"].astype(np.int32)
    return columns | {"index": index} | {name: array[index] for name, array in arrays.items()}
