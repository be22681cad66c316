"""Devices: one mesh `data` x `fsdp`, the batch split over both axes, large arrays of the state over `fsdp`.

`fsdp` consecutive devices share one copy of the state, so that the group lies within a host where it can. Batch
statistics are sums over the whole batch, whatever the mesh: `jit` sees global arrays.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from aia_jax.utils.errors import InputError

# Elements. Smaller arrays lie on every device: to gather 64 KB costs more time than the memory is worth.
MIN_SHARDED_SIZE = 2**14


def data_mesh(devices: list[jax.Device] | None = None, *, fsdp: int = 1) -> Mesh:
    """A mesh of all devices (of all hosts) with the axes `data` and `fsdp`.

    The devices of a process follow each other, so each process owns a contiguous part of a batch's rows, in the order
    of the processes: what `data.pipeline` yields.

    Args:
        devices: some of them, or described ones; all if None.
        fsdp: how many devices share one copy of the state.

    Raises:
        InputError: `fsdp` does not divide the number of devices.
    """
    devices = devices or jax.devices()
    if fsdp < 1 or len(devices) % fsdp:
        divisors = [str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise InputError(
            f"config.mesh.fsdp={fsdp} does not divide the {len(devices)} devices; possible: {', '.join(divisors)}"
        )
    near = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices).devices
    ordered = np.empty(len(devices), object)
    ordered[:] = sorted(near, key=lambda device: device.process_index)
    return Mesh(ordered.reshape(-1, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def state_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where an array of the state lies: split over `fsdp` along its largest axis that `fsdp` divides.

    Vectors, arrays of fewer than `MIN_SHARDED_SIZE` elements, and those without such an axis lie on every device.
    """
    fsdp = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not axes or len(shape) < 2 or np.prod(shape) < MIN_SHARDED_SIZE:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))


def shard_shapes(shapes: Any, mesh: Mesh) -> Any:
    """The tree of shapes with the sharding that `state_sharding` gives to each leaf."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=state_sharding(a.shape, mesh)), shapes
    )


def shardings(tree: Any) -> Any:
    """The sharding of each leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def check_batch_size(field: str, batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raises InputError unless the global `batch_size` (config field `field`) divides over devices and microbatches."""
    if microbatches < 1:
        raise InputError(f"config.accumulate_steps={microbatches} must be 1 or more")
    unit = mesh.size * microbatches
    if batch_size < 1 or batch_size % unit:
        accumulated = f" x {microbatches} microbatches (config.accumulate_steps)" if microbatches > 1 else ""
        raise InputError(
            f"config.{field}={batch_size} does not divide over {mesh.size} devices{accumulated}; "
            f"use a multiple of {unit}, for example {max(1, round(batch_size / unit)) * unit}"
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a global batch, as global arrays split over the devices."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def put_replicated(arrays: Any, mesh: Mesh) -> Any:
    """Whole arrays, of a tree, onto every device; every process gives the same."""
    return jax.tree.map(lambda rows: put_whole(rows, replicated(mesh)), arrays)


def processes() -> dict[str, int]:
    """Which of how many processes this is, as `data.pipeline` takes it."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def put_whole(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has whole, or that lies on the devices already, to where it belongs."""
    if isinstance(array, jax.Array):
        return jax.device_put(array, sharding)
    rows = np.asarray(array)
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def gathered(arrays: Any, mesh: Mesh) -> Any:
    """The same arrays, of a tree, whole on every device; all processes must call it."""
    if mesh.shape["fsdp"] == 1:
        return arrays
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(arrays)
