"""Devices: one mesh, the batch split over its `data` axis, everything else on every device."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from aia_jax.errors import InputError


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (of all hosts) with the single axis `data`."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(field: str, batch_size: int, mesh: Mesh) -> None:
    """Raises InputError unless the global `batch_size` (config field `field`) divides evenly over the devices."""
    if batch_size < 1 or batch_size % mesh.size:
        raise InputError(
            f"config.{field}={batch_size} does not divide over {mesh.size} devices; "
            f"use a multiple of {mesh.size}, for example {max(1, round(batch_size / mesh.size)) * mesh.size}"
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a global batch, as global arrays split over the devices."""
    sharding = over_data(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def put_replicated(arrays: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Whole arrays, of a tree, onto every device."""
    return jax.tree.map(lambda rows: jax.device_put(np.asarray(rows), replicated(mesh)), arrays)
