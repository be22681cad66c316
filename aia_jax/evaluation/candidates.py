"""What evaluation passes around: weights, and what they scored."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from aia_jax.training.model_arrays import Arrays
from aia_jax.training.task import Task

Outputs = Callable[[str], dict[str, np.ndarray]]  # of a split, by the task's `predict_split`


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Weights to evaluate.

    Attributes:
        name: of their row in the table.
        weights: `{"params", "stats", "constants"}` on the devices.
        facts: about them, for the results file.
        task: whose model they are of.
    """

    name: str
    weights: Arrays
    facts: dict[str, Any]
    task: Task
