"""All pairs of rows and columns, in blocks of rows that memory holds; on several devices the rows are split."""

import math
from typing import Any

import jax
from jax import Array


def num_blocks(rows: int, columns: int, block: int) -> int:
    """The fewest blocks of equally many rows, on each device, each of at most `block` pairs (or one row)."""
    own = rows // _devices(rows)
    largest = max(block // columns, 1)
    return next(count for count in range(math.ceil(own / largest), own + 1) if own % count == 0)


def split_rows(rows: Array, num_blocks: int) -> Array:
    """`[N, ...]` to `[blocks, N / blocks, ...]`: of each device's rows the next few, which stay there."""
    parts = rows.reshape(_devices(len(rows)), num_blocks, -1, *rows.shape[1:])
    return parts.swapaxes(0, 1).reshape(num_blocks, -1, *rows.shape[1:])


def join_rows(blocks: Array) -> Array:
    """The inverse of `split_rows`."""
    devices = _devices(blocks.shape[0] * blocks.shape[1])
    parts = blocks.reshape(len(blocks), devices, -1, *blocks.shape[2:])
    return parts.swapaxes(0, 1).reshape(-1, *blocks.shape[2:])


def _devices(rows: int) -> int:
    """Over how many devices the rows are split."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or rows % mesh.size else mesh.size


def everywhere(arrays: Any) -> Any:
    """The arrays of a tree, whole on every device, where a mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return arrays
    return jax.lax.with_sharding_constraint(arrays, jax.sharding.PartitionSpec())
