"""Trees of arrays with all their vectors in one: hundreds of biases and scales are then updated by one kernel."""

import functools
import math
from itertools import accumulate, pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Arrays = dict[str, Any]
Shapes = tuple[tuple[int, ...], ...]


class Packed(struct.PyTreeNode):
    """A tree of arrays; see `pack` and `unpack`.

    Attributes:
        vectors: `[P]`, every leaf of less than two axes, one after the other.
        others: the other leaves, in the tree's order.
        treedef: of the tree.
        shapes: of each leaf that is in `vectors`; None for one that is in `others`.
    """

    vectors: jax.Array
    others: tuple[jax.Array, ...]
    treedef: Any = struct.field(pytree_node=False)
    shapes: tuple[tuple[int, ...] | None, ...] = struct.field(pytree_node=False)


def pack(tree: Arrays) -> Packed:
    """Packs a tree of arrays, or of `jax.ShapeDtypeStruct`; all vectors must have one dtype."""
    leaves, treedef = jax.tree.flatten(tree)
    vectors = [leaf for leaf in leaves if leaf.ndim < 2]
    if len({leaf.dtype for leaf in vectors}) > 1:
        raise ValueError(f"vectors of several dtypes: {sorted({str(leaf.dtype) for leaf in vectors})}")
    others = tuple(leaf for leaf in leaves if leaf.ndim >= 2)
    joined = _for_shapes(_join, vectors)
    return Packed(joined, others, treedef, tuple(leaf.shape if leaf.ndim < 2 else None for leaf in leaves))


def unpack(packed: Packed) -> Arrays:
    """The inverse of `pack`."""
    shapes = tuple(shape for shape in packed.shapes if shape is not None)
    vectors = iter(_for_shapes(functools.partial(_cut, shapes=shapes), packed.vectors))
    others = iter(packed.others)
    return packed.treedef.unflatten([next(others if shape is None else vectors) for shape in packed.shapes])


def _for_shapes(function: Any, arrays: Any) -> Any:
    """`function(arrays)`; of shapes on devices the shapes of its results, on the same devices."""
    leaves = jax.tree.leaves(arrays)
    if not leaves or not isinstance(leaves[0], jax.ShapeDtypeStruct):
        return function(arrays)
    results = jax.eval_shape(function, arrays)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=leaves[0].sharding), results)


@jax.jit
def _join(vectors: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([vector.ravel() for vector in vectors]) if vectors else jnp.zeros(0)


@functools.partial(jax.jit, static_argnames="shapes")
def _cut(joined: jax.Array, *, shapes: Shapes) -> list[jax.Array]:
    return _slices(joined, shapes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _slices(joined: jax.Array, shapes: Shapes) -> list[jax.Array]:
    edges = list(accumulate(map(math.prod, shapes), initial=0))
    return [joined[a:b].reshape(shape) for (a, b), shape in zip(pairwise(edges), shapes, strict=True)]


# Autodiff would add up as many padded vectors as there are slices.
_slices.defvjp(lambda joined, shapes: (_slices(joined, shapes), None), lambda _shapes, _, parts: (_join(parts),))
