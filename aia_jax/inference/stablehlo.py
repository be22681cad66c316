"""Functions as files of `jax.export`: StableHLO with its weights, for several platforms and any number of images."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import export

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
Outputs = dict[str, jax.Array]


def to_stablehlo(
    function: Callable[[jax.Array], Outputs], image_size: int, *, batch: int | None, platforms: Sequence[str]
) -> bytes:
    """Serialises `function` of images uint8 `[B, S, S, 3]`, which is called as `call` of what `deserialize` gives.

    Args:
        image_size: S.
        batch: B; None: any.
        platforms: of `PLATFORMS`, those that it is to run on; they need not be there.
    """
    (size,) = export.symbolic_shape("B") if batch is None else (batch,)
    images = jax.ShapeDtypeStruct((size, image_size, image_size, 3), jnp.uint8)
    with _without_paths():
        return bytes(export.export(jax.jit(function), platforms=platforms)(images).serialize())


def load_stablehlo(content: bytes) -> Callable[[jax.Array], Outputs]:
    """The function that `to_stablehlo` serialised; it compiles once for each number of images."""
    return jax.jit(export.deserialize(bytearray(content)).call)


def here() -> str:
    """The platform of this process's devices."""
    return export.default_export_platform()


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Leaves the paths of this machine's source files out of what is lowered meanwhile."""
    name = "jax_hlo_source_file_canonicalization_regex"
    previous = getattr(jax.config, name)
    jax.config.update(name, ".*")
    try:
        yield
    finally:
        jax.config.update(name, previous)
