"""Functions of images as files of `jax.export`: StableHLO with its weights, for several platforms."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import export

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
Outputs = dict[str, jax.Array]


def to_stablehlo(
    function: Callable[[jax.Array], Outputs], image_size: int, *, batch: int | None, platforms: Sequence[str]
) -> bytes:
    """Serialises `function` of images uint8 `[B, S, S, 3]`; `load_stablehlo` restores it.

    Args:
        image_size: S.
        batch: B; None: any.
        platforms: names of `PLATFORMS` to compile for; this machine need not have them.
    """
    (size,) = export.symbolic_shape("B") if batch is None else (batch,)
    images = jax.ShapeDtypeStruct((size, image_size, image_size, 3), jnp.uint8)
    option = "jax_hlo_source_file_canonicalization_regex"
    previous = getattr(jax.config, option)
    jax.config.update(option, ".*")  # leaves paths of this machine's source files out
    try:
        return bytes(export.export(jax.jit(function), platforms=platforms)(images).serialize())
    finally:
        jax.config.update(option, previous)


def load_stablehlo(content: bytes) -> Callable[[jax.Array], Outputs]:
    """Restores a function of `to_stablehlo`; it compiles once for each number of images."""
    return jax.jit(export.deserialize(bytearray(content)).call)


def current_platform() -> str:
    """Returns the platform of this process's devices."""
    return export.default_export_platform()
