"""Squeeze-and-excitation's small products as one GPU kernel each way, in Pallas; no GPU has judged them yet."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec

from aia_jax.models.layers.moments import sums

_TILE = 16  # images of one program; the least that Triton's products take


class Opened(NamedTuple):
    """Gates, and what their way back needs.

    Attributes:
        means: of the activation, `[B, C]`.
        hidden: the layer between the two products, `[B, R]`.
        gate: `[B, C]`.
        normalised, slopes: sums over each image of the activation's slopes times the normalised values, and of the
            slopes, `[B, C]`.
    """

    means: Array
    hidden: Array
    gate: Array
    normalised: Array
    slopes: Array


class Back(NamedTuple):
    """What a gate's backward pass gives beside the gradients of its weights.

    Attributes:
        dexcited, dhidden: cotangents before the sigmoid `[B, C]` and before the ReLU `[B, R]`.
        share: cotangent of the means over the number of positions, `[B, C]`.
        dweight, dbias: of the norm, `[C]`.
    """

    dexcited: Array
    dhidden: Array
    share: Array
    dweight: Array
    dbias: Array


def choose(wanted: bool, plain: Callable[..., Any], ours: Callable[..., Any], positions: int, *arrays: Array) -> Any:
    """`plain(*arrays)`, or on CUDA devices, if it is wanted and fits, `ours(positions, *arrays)`."""
    if not wanted or not _fits(*arrays):
        return plain(*arrays)
    return jax.lax.platform_dependent(*arrays, cuda=functools.partial(ours, positions), default=plain)


def opened(positions: int, *arrays: Array, interpret: bool = False) -> Opened:
    """The gates of a batch, for use on CUDA devices.

    Args:
        positions: of an image, H W.
        arrays: values and slopes in parts `[B, n, C]`, what is to be taken from the values, and the inverse of the
            deviation `[C]`; the norm's weight and bias `[C]`; kernel and bias of both layers.
    """
    channels = arrays[0].shape[2]
    widths = [channels, arrays[7].shape[0], channels, channels, channels]
    return Opened(*_called(functools.partial(_open, positions), arrays, 2, widths, 5, interpret))


def closed(positions: int, *arrays: Array, interpret: bool = False) -> Back:
    """The way back, for use on CUDA devices.

    Args:
        positions: of an image, H W.
        arrays: in parts `[B, n, C]` the cotangent of the activation times normalised values, and that cotangent; all
            of `Opened` but the means; the norm's weight and bias `[C]`; the two kernels.
    """
    channels = arrays[0].shape[2]
    widths = [channels, arrays[2].shape[1], channels, channels, channels]
    *rows, dweight, dbias = _called(functools.partial(_close, positions), arrays, 6, widths, 3, interpret)
    return Back(*rows, *sums((dweight, dbias), (0,)))


def _open(positions, values, slopes, shift, inverse, weight, bias, kernel1, bias1, kernel2, bias2, *results):
    means, hidden, gate, normalised, slope_sums = results
    total = _total(slopes)
    of_values = (_total(values) - shift[...] * total) * inverse[...]
    mean = (of_values * weight[...] + total * bias[...]) / positions
    active = jnp.maximum(triton.dot(mean, kernel1[...]) + bias1[...], 0)
    means[...], hidden[...], normalised[...], slope_sums[...] = mean, active, of_values, total
    gate[...] = jax.nn.sigmoid(triton.dot(active, kernel2[...]) + bias2[...])


def _close(positions, *references):
    da_normalised, da, hidden, gate, normalised, slopes, weight, bias, kernel1, kernel2 = references[:10]
    dexcited, dhidden, share, dweight, dbias = references[10:]
    gates, of_normalised, of_da = gate[...], _total(da_normalised), _total(da)
    excited = (weight[...] * of_normalised + bias[...] * of_da) * gates * (1 - gates)
    rows = jnp.where(hidden[...] > 0, triton.dot(excited, kernel2[...], trans_b=True), 0)
    shares = triton.dot(rows / positions, kernel1[...], trans_b=True)
    dexcited[...], dhidden[...], share[...] = excited, rows, shares
    dweight[...] = (gates * of_normalised + shares * normalised[...]).sum(axis=0, keepdims=True)
    dbias[...] = (gates * of_da + shares * slopes[...]).sum(axis=0, keepdims=True)


def _total(parts: Any) -> Array:
    """Of a reference to `[T, n, C]` the sum over n."""
    return jax.lax.fori_loop(1, parts.shape[1], lambda part, total: total + parts[:, part, :], parts[:, 0, :])


def _called(
    body: Callable[..., None], arrays: tuple[Array, ...], split: int, widths: list[int], rows: int, interpret: bool
) -> list[Array]:
    """`body` for each tile of images; the first `split` arrays are split over them, the others are whole to each.

    The first `rows` results have a row for each image, the others one for each tile.
    """

    def local(*arrays: Array) -> list[Array]:
        count = arrays[0].shape[0]
        whole = [pl.BlockSpec(a.shape, functools.partial(_origin, a.ndim)) for a in arrays[split:]]
        parts = [pl.BlockSpec((_TILE, *a.shape[1:]), functools.partial(_row, a.ndim)) for a in arrays[:split]]
        heights = [_TILE if number < rows else 1 for number in range(len(widths))]
        return pl.pallas_call(
            body,
            grid=(count // _TILE,),
            in_specs=[*parts, *whole],
            out_specs=[pl.BlockSpec((h, w), functools.partial(_row, 2)) for h, w in zip(heights, widths, strict=True)],
            out_shape=[
                jax.ShapeDtypeStruct((count // _TILE * h, w), jnp.float32) for h, w in zip(heights, widths, strict=True)
            ],
            compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),
            interpret=interpret,
        )(*arrays)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(*arrays)
    over = PartitionSpec(mesh.axis_names)
    specs = tuple(over if number < split else PartitionSpec() for number in range(len(arrays)))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=over, check_vma=False)(*arrays)


def _row(ndim: int, tile: Any) -> tuple[Any, ...]:
    return (tile, *(0,) * (ndim - 1))


def _origin(ndim: int, _tile: Any) -> tuple[int, ...]:
    return (0,) * ndim


def _fits(*arrays: Array) -> bool:
    """Triton takes powers of two, and products of 16 and more."""
    mesh = jax.sharding.get_abstract_mesh()
    tiles = arrays[0].shape[0] % (_TILE * (1 if mesh.empty else mesh.size)) == 0
    sizes = {size for array in arrays if array.ndim < 3 for size in array.shape[array.ndim - 1 :]}
    return tiles and all(size >= _TILE and size & (size - 1) == 0 for size in sizes)
