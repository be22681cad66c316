"""How the axes of an array in PyTorch become ours, and what its last name is there."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Axes of a kernel: how theirs become ours, and back."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


CONV = Layout(lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2))  # OIHW, OHWI
HWIO = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
LINEAR = Layout(lambda x: x.T, lambda x: x.T)
POINTWISE = Layout(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])  # a 1x1 convolution there
ROW = Layout(lambda x: x[0], lambda x: x[None])
SAME = Layout(lambda x: x, lambda x: x)
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
