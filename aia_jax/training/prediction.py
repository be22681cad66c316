"""Predicts whole splits, with several batches dispatched ahead."""

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

# Batches dispatched before the first one is read: the devices never wait for the host, and memory stays bounded.
_IN_FLIGHT = 4
Tag = TypeVar("Tag")


class Predictor:
    """Applies row-wise functions of a model to whole splits; compiles each function and batch shape once.

    `weights_sharding` is one sharding for the weights, or one for each leaf; None: replicated.
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
        """Returns the outputs for all rows of a split, in order, without padding, on every process.

        Args:
            predict_fn: `(model, batch[, shared]) -> outputs`, row by row.
            weights: one or more sets of weights; each batch is transferred once for all of them.
            batches: this process's rows; padding rows have `mask` False.
            shared: for each of `weights`, arrays that every row needs: a third argument of `predict_fn`.

        Returns:
            `{name: [N, ...]}` for each of `weights`.
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

        disable = jax.process_index() > 0 or None  # None: only where the output is no terminal
        with tqdm(desc="predict", unit="img", leave=False, dynamic_ncols=True, disable=disable) as bar:
            for _, (outputs, mask) in fetch_outputs(dispatched()):
                for rows, chunk in zip(outputs, chunks, strict=True):
                    chunk.append({name: values[mask] for name, values in rows.items()})
                bar.update(int(mask.sum()))
        return [{name: np.concatenate([rows[name] for rows in chunk]) for name in chunk[0]} for chunk in chunks]


def fetch_outputs(dispatched: Iterable[tuple[Tag, Arrays]]) -> Iterator[tuple[Tag, Arrays]]:
    """Copies outputs to the host, in order, while the next batches are computed.

    `dispatched` yields pairs of any data about a batch, and the batch's outputs on the devices.
    """
    in_flight: deque[tuple[Tag, Arrays]] = deque()
    for one in dispatched:
        in_flight.append(one)
        if len(in_flight) > _IN_FLIGHT:
            tag, outputs = in_flight.popleft()
            yield tag, jax.device_get(outputs)
    for tag, outputs in in_flight:
        yield tag, jax.device_get(outputs)
