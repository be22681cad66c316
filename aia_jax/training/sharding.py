"""Places arrays on a mesh of devices with the axes `data` and `fsdp`.

Batches are split over both axes. Large arrays of the training state are split over `fsdp`. Each group of
`config.mesh.fsdp` consecutive devices shares one copy of the state. If possible, the devices of a group are in the same
host. `jax.jit` computes with global arrays, so batch norm gives the same statistics for every number of devices.
"""

import logging
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from aia_jax.utils.errors import InputError

# Number of elements (64 KB in float32). Smaller arrays are replicated, because splitting them saves little memory.
MIN_SHARDED_SIZE = 2**14
_CHOOSING = "JAX_PLATFORMS", "JAX_PLATFORM_NAME", "CUDA_VISIBLE_DEVICES"


def available_devices() -> list[jax.Device]:
    """Returns the devices of all hosts. The first call starts JAX's platforms, such as CUDA.

    Raises InputError if JAX cannot start a platform. The message names the environment variables that choose it.
    """
    logging.getLogger("jax._src.xla_bridge").addFilter(_traceback_to_line)
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that at least one platform has started
        chosen = {name: f"{name}={os.environ[name]}" for name in _CHOOSING if os.environ.get(name)}
        where = f" as {' '.join(chosen.values())} says" if chosen else ""
        reason = (str(error).strip() or "the platform did not start").splitlines()[0]
        advice = f"unset {' and '.join(chosen)} to let JAX choose, " * bool(chosen)
        advice += "set JAX_PLATFORMS=cpu alone to compute on the CPU"
        raise InputError(f"JAX cannot compute{where}: {reason:.300}; {advice}") from error


def _traceback_to_line(record: logging.LogRecord) -> bool:
    """Shortens JAX's report of a plugin that cannot start, such as that of CUDA without its libraries."""
    if record.exc_info:
        record.msg, record.args, record.exc_info = f"{record.getMessage()}: {record.exc_info[1]}", (), None
    return True


def data_mesh(devices: list[jax.Device] | None = None, *, fsdp: int = 1) -> Mesh:
    """Returns a mesh of devices with the axes `data` and `fsdp`.

    The devices of a process are consecutive. So each process has consecutive rows of a batch, in the order of the
    process indices. `aia_jax.data.pipeline` depends on this order.

    Args:
        devices: devices, or device descriptions for ahead-of-time compilation. None means all devices of all hosts.
        fsdp: the number of devices that share one copy of the training state.

    Raises InputError if `fsdp` does not divide the number of devices.
    """
    devices = devices or available_devices()
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
    """Returns the sharding that puts a complete copy of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis of an array over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def state_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array in the training state. Let F be the number of devices on the mesh axis `fsdp`.

    Of the axes divisible by F, splits the largest over `fsdp`. Replicates vectors, arrays of fewer than
    `MIN_SHARDED_SIZE` elements, and arrays without an axis that is divisible by F.
    """
    fsdp = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not axes or len(shape) < 2 or np.prod(shape) < MIN_SHARDED_SIZE:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))


def shard_shapes(shapes: Any, mesh: Mesh) -> Any:
    """Replaces each array of the tree `shapes` by a `jax.ShapeDtypeStruct` with the sharding from `state_sharding`."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=state_sharding(a.shape, mesh)), shapes
    )


def check_batch_size(field: str, batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raises InputError if `batch_size` (`config.<field>`) is not a multiple of devices times `microbatches`."""
    unit = mesh.size * microbatches
    if batch_size % unit:
        accumulated = f" x {microbatches} microbatches (config.accumulate_steps)" if microbatches > 1 else ""
        raise InputError(
            f"config.{field}={batch_size} does not divide over {mesh.size} devices{accumulated}; "
            f"use a multiple of {unit}, for example {max(1, round(batch_size / unit)) * unit}"
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts the rows of a batch that this process has onto the devices. Returns global arrays, split over `mesh`."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def put_replicated(arrays: Any, mesh: Mesh) -> Any:
    """Puts a tree of arrays onto every device. Every process must pass equal arrays."""
    return jax.tree.map(lambda rows: put_array(rows, replicated(mesh)), arrays)


def process_kwargs() -> dict[str, int]:
    """Returns this process's index and the number of processes, as keyword arguments for `aia_jax.data.pipeline`."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def put_array(array: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array onto the devices of `sharding`. A NumPy array must be equal in every process."""
    if isinstance(array, jax.Array):
        return jax.device_put(array, sharding)
    rows = np.asarray(array)
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def gather(arrays: Any, mesh: Mesh) -> Any:
    """Copies complete arrays to every device (FSDP all-gather). Every process must call it. Works in `jax.jit` too."""
    return arrays if mesh.shape["fsdp"] == 1 else jax.lax.with_sharding_constraint(arrays, replicated(mesh))
