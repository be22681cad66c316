"""The interface between a system (annotation, retrieval, search) and the code that trains and evaluates it."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.training.model_arrays import Arrays
from aia_jax.training.prediction import Predictor


class Task(Protocol):
    """A system: its data, model, loss, predictions and metrics. Weights are `{"params", "stats", "constants"}`."""

    config: ConfigDict

    def split(self, name: str) -> Any:
        """Loads and checks the data of "train", "validation" or "test". Each system has its own type of data.

        Raises:
            InputError: the name is unknown, or the data are missing or do not fit the config.
        """

    def summary(self) -> str:
        """Returns one line of text about the data and the model. It is printed before training."""

    def describe(self) -> dict[str, Any]:
        """Returns JSON-able facts about the data that a checkpoint must keep, such as the labels."""

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a newly initialised model."""

    def prepare(self, weights: Arrays, splits: Sequence[str]) -> None:
        """Loads `splits`, and computes the features of a frozen backbone. Called once, before the first batch."""

    def epoch_end(self, epoch: int) -> int:
        """Returns the number of steps from the start of training to the end of `epoch` (1-based)."""

    def resident_arrays(self) -> dict[str, np.ndarray]:
        """Returns training arrays to keep in device memory. The step reads the rows `batch["index"]` of each array."""

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's rows of each batch, starting after `start_step` steps. Never ends."""

    def row_names(self, index: np.ndarray) -> list[str]:
        """Returns a name for each of the training rows `index`, such as the image's name."""

    def loss(self, model: nnx.Module, batch: Arrays, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the mean loss of a batch in training mode, and further scalars to log."""

    def predict_split(self, predictor: Predictor, weights: Sequence[Arrays], split: str) -> list[dict[str, np.ndarray]]:
        """Returns the outputs for all rows of `split`, one dict for each set of weights."""

    def evaluate(self, split: str, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """Returns the metrics of the outputs for all rows of `split`."""
