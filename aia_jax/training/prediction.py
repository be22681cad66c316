"""Outputs of a whole split, with the devices kept busy."""

import functools
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

# Batches dispatched ahead of the one whose outputs are read: while one is computed the next are on their way, and the
# memory for them stays bounded.
_IN_FLIGHT = 4
Tag = TypeVar("Tag")


class Predictor:
    """Runs row-wise functions of a model over whole splits; each is compiled once.

    Args:
        graphdef: of the model.
        mesh: the devices.
        weights_sharding: of the weights, or of each of their leaves; on every device if None.
    """

    def __init__(self, graphdef: nnx.GraphDef, mesh: Mesh, weights_sharding: Any = None):
        self._graphdef, self._mesh, self._weights_sharding = graphdef, mesh, weights_sharding
        self._steps: dict[Callable[..., Arrays], Callable[..., Arrays]] = {}

    def __call__(
        self,
        predict_fn: Callable[..., Arrays],
        weights: Sequence[Arrays],
        batches: Iterable[dict[str, np.ndarray]],
        shared: Sequence[Arrays] | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Outputs of `predict_fn(model, batch)`, or of `predict_fn(model, batch, shared)`; see `predict_split`."""
        if predict_fn not in self._steps:
            self._steps[predict_fn] = make_predict_step(
                self._graphdef, predict_fn, self._mesh, self._weights_sharding, shared=shared is not None
            )
        return predict_split(self._steps[predict_fn], weights, batches, self._mesh, shared)


def fetched(dispatched: Iterable[tuple[Tag, Arrays]]) -> Iterator[tuple[Tag, Arrays]]:
    """Outputs on the host, in order, while the next batches are computed.

    Args:
        dispatched: anything about a batch, and its outputs on the devices.
    """
    in_flight: deque[tuple[Tag, Arrays]] = deque()
    for one in dispatched:
        in_flight.append(one)
        if len(in_flight) > _IN_FLIGHT:
            tag, outputs = in_flight.popleft()
            yield tag, jax.device_get(outputs)
    for tag, outputs in in_flight:
        yield tag, jax.device_get(outputs)


def predict_split(
    predict_step: Callable[..., Arrays],
    weights: Sequence[Arrays],
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    shared: Sequence[Arrays] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Outputs of all rows of a split, in their order, without padding, on every process.

    Args:
        predict_step: `(weights, batch) -> outputs`, row-wise; see `state.make_predict_step`.
        weights: one or more; each batch is transferred once for all of them.
        batches: this process's rows; padding rows have `mask` False. Each shape of them is compiled once.
        shared: for each of `weights` what all rows need whole, a third argument of the step.

    Returns:
        The outputs under each of `weights`: `{name: [N, ...]}`.
    """
    chunks: list[list[dict[str, np.ndarray]]] = [[] for _ in weights]
    given = [(of_one,) for of_one in weights]
    if shared is not None:
        placed = [sharding.put_replicated(of_one, mesh) for of_one in shared]
        given = list(zip(weights, placed, strict=True))
    bar = tqdm(
        desc="predict", unit="img", leave=False, dynamic_ncols=True, disable=None if jax.process_index() == 0 else True
    )

    def dispatched() -> Iterator[tuple[None, Any]]:
        for batch in batches:
            on_devices = sharding.put_batch(batch, mesh)
            mask = _replicate(mesh)(on_devices.pop("mask"))
            yield None, ([predict_step(first, on_devices, *rest) for first, *rest in given], mask)

    with bar:
        for _, (outputs, mask) in fetched(dispatched()):
            for of_one, kept in zip(outputs, chunks, strict=True):
                kept.append({name: rows[mask] for name, rows in of_one.items()})
            bar.update(int(mask.sum()))
    return [{name: np.concatenate([chunk[name] for chunk in kept]) for name in kept[0]} for kept in chunks]


@functools.cache
def _replicate(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda rows: rows, out_shardings=sharding.replicated(mesh))
