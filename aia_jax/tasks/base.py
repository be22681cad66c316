"""Splits and batches, common to the tasks of all systems."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from aia_jax.data import pipeline
from aia_jax.training.sharding import process_kwargs
from aia_jax.utils.errors import InputError

SPLITS = ("train", "validation", "test")
RowSource = Mapping[str, Any] | pipeline.MakeBatch  # row-aligned arrays, or a function that makes a batch


class BaseTask:
    """Implements the methods of `training.task.Task` that are the same for all systems.

    Subclasses load a split in `_load_split` and return the source of training batches in `_train_source`.

    Args:
        config: the config of a run.
    """

    def __init__(self, config: ConfigDict):
        self.config = config
        self._splits: dict[str, Any] = {}

    def split(self, name: str) -> Any:
        """Returns the data of "train", "validation" or "test", loaded and checked on first use.

        Raises:
            InputError: unknown name, or data that are missing or do not fit the config.
        """
        if name not in SPLITS:
            raise InputError(f"split {name!r} is unknown; known: {', '.join(SPLITS)}")
        if name not in self._splits:
            self._splits[name] = self._load_split(name)
        return self._splits[name]

    def prepare(self, weights: dict[str, Any], splits: Sequence[str]) -> None:
        """Loads the splits."""
        for name in splits:
            self.split(name)

    def epoch_end(self, epoch: int) -> int:
        """Returns the number of steps after which all training rows were seen `epoch` times."""
        return pipeline.epoch_end(epoch, self._num_train_rows(), self.config.batch_size)

    def resident_arrays(self) -> dict[str, np.ndarray]:
        """Returns no arrays: batches hold their rows."""
        return {}

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's rows of each training batch from `start_step` on, without end."""
        return pipeline.train_batches(
            self._train_source(),
            self._num_train_rows(),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            **process_kwargs(),
        )

    def _batches_in_order(self, source: RowSource, num_rows: int) -> Iterator[dict[str, np.ndarray]]:
        return pipeline.eval_batches(source, num_rows, batch_size=self.config.eval.batch_size, **process_kwargs())

    def _num_train_rows(self) -> int:
        return len(self.split("train"))
