"""Implements splits and batches for the tasks of all systems."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aia_jax.data import pipeline, transforms
from aia_jax.data.annotation.channel_stats import ChannelStats
from aia_jax.training.sharding import process_kwargs
from aia_jax.utils.errors import InputError

SPLITS = ("train", "validation", "test")
RowSource = Mapping[str, Any] | pipeline.MakeBatch  # arrays `[N, ...]`, or a function that makes a batch


class BaseTask:
    """Implements the methods of `training.task.Task` that are the same for all systems.

    Subclasses implement `_load_split`, and `_train_source`, which returns arrays or a function for training batches.

    Attributes:
        channel_stats: mean and standard deviation of each channel, to normalise images with values from 0 to 1.
    """

    channel_stats: ChannelStats

    def __init__(self, config: ConfigDict):
        self.config = config
        self._splits: dict[str, Any] = {}

    def split(self, name: str) -> Any:
        """Returns the data of a split, loaded and checked on first use."""
        if name not in SPLITS:
            raise InputError(f"split {name!r} is unknown; known: {', '.join(SPLITS)}")
        if name not in self._splits:
            self._splits[name] = self._load_split(name)
        return self._splits[name]

    def initial_arrays(self) -> dict[str, np.ndarray]:
        return {}

    def prepare(self, weights: dict[str, Any], splits: Sequence[str]) -> None:
        """Loads `splits`. Ignores `weights`."""
        for name in splits:
            self.split(name)

    def epoch_end(self, epoch: int) -> int:
        """Returns the last global step of `epoch` (1-based); see `pipeline.epoch_end`."""
        return pipeline.epoch_end(epoch, self._num_train_rows(), self.config.batch_size)

    def resident_arrays(self) -> dict[str, np.ndarray]:
        return {}  # each batch contains all data of its rows

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        return pipeline.train_batches(
            self._train_source(),
            self._num_train_rows(),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            **process_kwargs(),
        )

    def normalize(self, images: jax.Array) -> jax.Array:
        """Normalises uint8 images with `channel_stats`."""
        return transforms.normalize(images, *self.channel_stats)

    def _batches_in_order(self, source: RowSource, num_rows: int) -> Iterator[dict[str, np.ndarray]]:
        return pipeline.eval_batches(source, num_rows, batch_size=self.config.eval.batch_size, **process_kwargs())

    def _num_train_rows(self) -> int:
        return len(self.split("train"))
