"""Splits the rows of a matrix of pairs into blocks, to limit the memory. The devices share the rows of each block."""

import math
from typing import Any

import jax
from jax import Array


def num_blocks(rows: int, columns: int, block: int) -> int:
    """Returns the smallest number of equal blocks with at most `block` pairs, or one row, on each device."""
    own = rows // _devices(rows)
    largest = max(block // columns, 1)
    return next(count for count in range(math.ceil(own / largest), own + 1) if own % count == 0)


def split_rows(rows: Array, num_blocks: int) -> Array:
    """Splits rows `[N, ...]` into M blocks, `[M, N / M, ...]`. Each device has an equal part of every block."""
    parts = rows.reshape(_devices(len(rows)), num_blocks, -1, *rows.shape[1:])
    return parts.swapaxes(0, 1).reshape(num_blocks, -1, *rows.shape[1:])


def join_rows(blocks: Array) -> Array:
    """Joins the blocks from `split_rows`. Returns the rows in their original order."""
    devices = _devices(blocks.shape[0] * blocks.shape[1])
    parts = blocks.reshape(len(blocks), devices, -1, *blocks.shape[2:])
    return parts.swapaxes(0, 1).reshape(-1, *blocks.shape[2:])


def _devices(rows: int) -> int:
    """Returns the number of devices that share the rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or rows % mesh.size else mesh.size


def replicate(arrays: Any) -> Any:
    """Replicates the arrays of a pytree on all devices of the current mesh. Without a mesh, returns the arrays."""
    if jax.sharding.get_abstract_mesh().empty:
        return arrays
    return jax.lax.with_sharding_constraint(arrays, jax.sharding.PartitionSpec())
