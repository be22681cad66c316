"""Batches of rows, by Grain: the order is a function of the seed and the global step alone.

Works on any row-aligned arrays; without arrays only the indices are yielded, for data that lies on the device. Where
batches are more than rows of arrays, a function makes them.
"""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from aia_jax.utils.errors import InputError

if TYPE_CHECKING:
    import grain  # and where it is used: a machine that only times steps may lack it


# Given the columns of a whole batch, `index` [B] and in evaluation `mask` [B], and which part of its rows this process
# takes, the columns of that part. Picklable, if there are workers.
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
    num_workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """An endless stream of this process's part of every batch, from batch `start_step` on.

    Epoch e is a permutation of all rows by `(seed, e)`. Batches run on across the ends of epochs, so each row is seen
    exactly once an epoch. Of each batch the processes take contiguous slices in turn.

    Args:
        arrays: `[N, ...]` each, indexable by an integer array; or what makes a batch of its indices.
        num_rows: N.
        batch_size: B, of all processes together.
        num_workers: processes that gather; 0: threads of this one. The arrays are pickled into them.

    Returns:
        Iterator over `{"index": int32 [b], **{name: [b, ...]}}` with b = B / process_count; `close()` ends its workers.

    Raises:
        InputError: B is not divisible by `process_count`, or larger than N.
    """
    import grain

    part = _part(batch_size, process_index, process_count)
    if batch_size > num_rows:
        raise InputError(f"config.batch_size={batch_size} is larger than the training data of {num_rows} images")
    order = grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat().batch(batch_size)
    batches = order[start_step:].map(_Gather(arrays, part))
    return iter(read_ahead(batches, num_workers=num_workers))


def eval_batches(
    arrays: Mapping[str, Any] | MakeBatch,
    num_rows: int,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of every batch, each row once and in order.

    The last batch is filled up with row 0, which `mask` tells apart.

    Args: as of `train_batches`.

    Returns:
        Iterator over `{"index": int32 [b], "mask": bool [b], **{name: [b, ...]}}` with b = B / process_count.

    Raises:
        InputError: B is not divisible by `process_count`, or there are no rows.
    """
    import grain

    part = _part(batch_size, process_index, process_count)
    if num_rows < 1:
        raise InputError("there are no images to evaluate")
    num_batches = -(-num_rows // batch_size)
    order = grain.MapDataset.range(num_batches).map(_InOrder(num_rows, batch_size))
    return iter(read_ahead(order.map(_Gather(arrays, part)), num_workers=num_workers))


def epoch_end(epoch: int, num_rows: int, batch_size: int) -> int:
    """The global step at which `epoch` (1-based) is complete but for rows that share a batch with the next."""
    return epoch * num_rows // batch_size


def read_ahead(
    dataset: "grain.MapDataset", *, num_threads: int = 4, buffer_size: int = 4, num_workers: int = 0
) -> "grain.IterDataset":
    """The elements in order, computed ahead of their use.

    Args:
        dataset: picklable, if there are workers.
        num_threads, buffer_size: of this process, or of each worker.
        num_workers: processes that compute; 0: threads of this one.
    """
    import grain

    elements = dataset.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer_size))
    if not num_workers:
        return elements
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain asks for its absl flags, which only a command parses.
    options = grain.multiprocessing.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)
    return elements.mp_prefetch(options, worker_init_fn=_begin_worker)


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f"batch_size={batch_size} must be a positive multiple of the {process_count} process(es)")
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _begin_worker(*_: int) -> None:
    """In a worker: Ctrl-C, which a terminal sends to all processes, is for the one that ends the workers; and if that
    one is killed, so that it cannot, they end by themselves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


# Callable classes, because worker processes need to pickle them.
@dataclasses.dataclass(frozen=True)
class _InOrder:
    """Batch number to the positions `[B]` of its rows; those from `num_rows` on stand for padding."""

    num_rows: int
    batch_size: int

    def __call__(self, batch: int) -> dict[str, np.ndarray]:
        positions = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        mask = positions < self.num_rows
        return {"index": np.where(mask, positions, 0), "mask": mask}


@dataclasses.dataclass(frozen=True)
class _Gather:
    """A batch's indices to this process's rows."""

    arrays: Mapping[str, Any] | MakeBatch
    part: slice

    def __call__(self, batch: np.ndarray | dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns = batch if isinstance(batch, dict) else {"index": batch}
        if callable(self.arrays):
            return self.arrays(columns, self.part)
        columns = {name: column[self.part] for name, column in columns.items()}
        index = columns["index"].astype(np.int32)
        return columns | {"index": index} | {name: array[index] for name, array in self.arrays.items()}
