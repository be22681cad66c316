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
    """A system: data, model, loss, predictions and metrics. Model weights are `{"params", "stats", "constants"}`."""

    config: ConfigDict

    def split(self, name: str) -> Any:
        """Loads and checks the split "train", "validation" or "test". Each system returns its own type of data.

        Raises:
            InputError: `name` is unknown, or the data are missing or do not fit the config.
        """

    def summary(self) -> str:
        """Returns one line of text about the data and the model. It is printed before training."""

    def describe(self) -> dict[str, Any]:
        """Returns facts about the data, such as the labels. Each checkpoint stores these facts as JSON."""

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a newly initialised model."""

    def initial_arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays of a new model that are not random, `{path: array}`, such as embeddings of labels."""

    def prepare(self, weights: Arrays, splits: Sequence[str]) -> None:
        """Loads `splits` and, for a frozen backbone, computes the features of all images. Called before any batch."""

    def epoch_end(self, epoch: int) -> int:
        """Returns the number of steps from the start of training to the end of `epoch` (1-based)."""

    def resident_arrays(self) -> dict[str, np.ndarray]:
        """Returns training arrays to keep in device memory. A training step reads their rows `batch["index"]`."""

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields, for each step after `start_step`, this process's rows of the training batch. Never ends."""

    def row_names(self, index: np.ndarray) -> list[str]:
        """Returns a name, such as an image's file name, for each training row with a number in `index`."""

    def loss(self, model: nnx.Module, batch: Arrays, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Runs the model in training mode. Returns the mean loss of a batch, and other scalars to log."""

    def predict_split(self, predictor: Predictor, weights: Sequence[Arrays], split: str) -> list[dict[str, np.ndarray]]:
        """Returns the model outputs for all rows of `split`, one dict of arrays for each set of weights."""

    def evaluate(self, split: str, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """Returns the metrics of `outputs`, the model outputs for all rows of `split`."""
