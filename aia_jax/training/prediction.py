"""Outputs of a whole split, with the devices kept busy."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from aia_jax.training import sharding
from aia_jax.training.state import Arrays

# Batches dispatched ahead of the one whose outputs are read: while one is computed the next are on their way, and the
# memory for them stays bounded.
_IN_FLIGHT = 4


def predict_split(
    predict_step: Callable[[Arrays, Arrays], Arrays],
    weights: Sequence[Arrays],
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
) -> list[dict[str, np.ndarray]]:
    """Outputs of all rows of a split, in their order, without padding, on every process.

    Args:
        predict_step: `(weights, batch) -> outputs`, row-wise; see `state.make_predict_step`.
        weights: one or more; each batch is transferred once for all of them.
        batches: this process's rows, of one shape throughout; padding rows have `mask` False.

    Returns:
        The outputs under each of `weights`: `{name: [N, ...]}`.
    """
    chunks: list[list[dict[str, np.ndarray]]] = [[] for _ in weights]
    in_flight: deque[tuple[list[Arrays], jax.Array]] = deque()
    bar = tqdm(
        desc="predict", unit="img", leave=False, dynamic_ncols=True, disable=None if jax.process_index() == 0 else True
    )

    def retire() -> None:
        outputs, mask = jax.device_get(in_flight.popleft())
        for of_one, kept in zip(outputs, chunks, strict=True):
            kept.append({name: rows[mask] for name, rows in of_one.items()})
        bar.update(int(mask.sum()))

    with bar:
        for batch in batches:
            on_devices = sharding.put_batch(batch, mesh)
            mask = _replicate(mesh)(on_devices.pop("mask"))
            in_flight.append(([predict_step(of_one, on_devices) for of_one in weights], mask))
            if len(in_flight) > _IN_FLIGHT:
                retire()
        while in_flight:
            retire()
    return [{name: np.concatenate([chunk[name] for chunk in kept]) for name in kept[0]} for kept in chunks]


@functools.cache
def _replicate(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda rows: rows, out_shardings=sharding.replicated(mesh))
