"""Computes model outputs for whole splits. Dispatches several batches before reading the outputs of the first."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from aia_jax.training import sharding
from aia_jax.training.model_arrays import Arrays
from aia_jax.training.step import make_predict_step

# Number of batches whose outputs are not read yet: enough to keep the devices busy, with bounded memory.
_IN_FLIGHT = 4
Tag = TypeVar("Tag")


class Predictor:
    """Applies a function of the model to all rows of a split. Compiles once for each function and batch shape.

    `weights_sharding` is one sharding for all weights, or a tree with one for each. None replicates all weights.
    """

    def __init__(self, graphdef: nnx.GraphDef, mesh: Mesh, weights_sharding: Any = None):
        self._graphdef, self._mesh, self._weights_sharding = graphdef, mesh, weights_sharding
        self._steps: dict[Callable[..., Arrays], Callable[..., Arrays]] = {}
        self._replicate = jax.jit(lambda rows: rows, out_shardings=sharding.replicated(mesh))

    def __call__(
        self,
        predict_fn: Callable[..., Arrays],
        weights: Sequence[Arrays],
        batches: Iterable[dict[str, np.ndarray]],
        shared: Sequence[Arrays] | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Returns the outputs for all N rows of a split, in order and without padding rows, on every process.

        Args:
            predict_fn: `(model, batch[, shared]) -> outputs`. Each output row depends only on its own batch row.
            weights: one or more sets of weights. Each batch is copied to the devices only once.
            batches: dicts of arrays with this process's rows. The array `mask` is False for padding rows.
            shared: for each set of weights, a dict of arrays that all rows use: the argument `shared` of `predict_fn`.

        Returns:
            A dict `{name: array [N, ...]}` for each set of weights.
        """
        if predict_fn not in self._steps:
            self._steps[predict_fn] = make_predict_step(
                self._graphdef, predict_fn, self._mesh, self._weights_sharding, shared=shared is not None
            )
        step = self._steps[predict_fn]
        on_devices = [sharding.put_replicated(arrays, self._mesh) for arrays in shared or ()]
        arguments = [(each,) for each in weights] if shared is None else list(zip(weights, on_devices, strict=True))
        chunks: list[list[dict[str, np.ndarray]]] = [[] for _ in weights]

        def dispatched() -> Iterator[tuple[None, Any]]:
            for rows in batches:
                batch = sharding.put_batch(rows, self._mesh)
                mask = self._replicate(batch.pop("mask"))
                yield None, ([step(first, batch, *rest) for first, *rest in arguments], mask)

        disable = jax.process_index() > 0 or None  # None: disabled if the output is not a terminal
        with tqdm(desc="predict", unit="img", leave=False, dynamic_ncols=True, disable=disable) as bar:
            for _, (outputs, mask) in fetch_outputs(dispatched()):
                for rows, chunk in zip(outputs, chunks, strict=True):
                    chunk.append({name: values[mask] for name, values in rows.items()})
                bar.update(int(mask.sum()))
        return [{name: np.concatenate([rows[name] for rows in chunk]) for name in chunk[0]} for chunk in chunks]


def fetch_outputs(dispatched: Iterable[tuple[Tag, Arrays]]) -> Iterator[tuple[Tag, Arrays]]:
    """Copies the outputs of each batch to the host, in order, while the devices compute the next batches.

    `dispatched` yields pairs `(tag, outputs)`: any data about the batch, and output arrays on the devices.
    """
    in_flight: deque[tuple[Tag, Arrays]] = deque()
    for one in dispatched:
        in_flight.append(one)
        if len(in_flight) > _IN_FLIGHT:
            tag, outputs = in_flight.popleft()
            yield tag, jax.device_get(outputs)
    for tag, outputs in in_flight:
        yield tag, jax.device_get(outputs)
