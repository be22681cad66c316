"""Trees of arrays with all vectors in one and arrays of one shape in one: a few kernels then update hundreds."""

import functools
import math
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aia_jax.training.model_arrays import Arrays
from aia_jax.training.sharding import state_sharding

_FEW = 6  # XLA's GPU code concatenates up to so many arrays in a kernel of their own
Shapes = tuple[tuple[int, ...], ...]


class Packed(struct.PyTreeNode):
    """A tree of arrays; see `pack` and `unpack`.

    Attributes:
        vectors: `[P]`, every leaf of less than two axes, one after the other; None if there are none.
        stacks: for each shape of two axes or more and each dtype `[n, ...]`, the n leaves of it, in the tree's order.
        treedef: of the tree.
        shapes: of each leaf that is in `vectors`; for the others None.
        places: of each leaf that is in `stacks` the stack and the row; for the others None.
    """

    vectors: jax.Array | None
    stacks: tuple[jax.Array, ...]
    treedef: Any = struct.field(pytree_node=False)
    shapes: tuple[tuple[int, ...] | None, ...] = struct.field(pytree_node=False)
    places: tuple[tuple[int, int] | None, ...] = struct.field(pytree_node=False)


def pack(tree: Arrays) -> Packed:
    """Packs a tree of arrays, or of `jax.ShapeDtypeStruct`; all vectors must have one dtype."""
    leaves, treedef = jax.tree.flatten(tree)
    vectors = [leaf for leaf in leaves if leaf.ndim < 2]
    if len({leaf.dtype for leaf in vectors}) > 1:
        raise ValueError(f"vectors of several dtypes: {sorted({str(leaf.dtype) for leaf in vectors})}")
    groups: dict[Any, list[Any]] = {}
    places: list[tuple[int, int] | None] = []
    for leaf in leaves:
        place = None
        if leaf.ndim >= 2:
            group = groups.setdefault((leaf.shape, leaf.dtype), [])
            place = list(groups).index((leaf.shape, leaf.dtype)), len(group)
            group.append(leaf)
        places.append(place)
    stacks = tuple(_applied(_stack, group, lambda spec: (None, *spec)) for group in groups.values())
    shapes = tuple(leaf.shape if leaf.ndim < 2 else None for leaf in leaves)
    return Packed(_applied(_join, vectors) if vectors else None, stacks, treedef, shapes, tuple(places))


def unpack(packed: Packed) -> Arrays:
    """The inverse of `pack`."""
    vectors = _each_vector(packed.vectors, packed.shapes)
    rows = [_applied(_rows, stack, lambda spec: spec[1:]) for stack in packed.stacks]
    return packed.treedef.unflatten(
        [next(vectors) if place is None else rows[place[0]][place[1]] for place in packed.places]
    )


def each_weight(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`jax.tree.map` over trees of one structure; for `function`, what is packed in them is unpacked."""

    def apply(node: Any, *others: Any) -> Any:
        if not isinstance(node, Packed):
            return function(node, *others)
        return pack(jax.tree.map(function, unpack(node), *map(unpack, others)))

    return jax.tree.map(apply, tree, *others, is_leaf=_is_packed)


def together(tree: Any) -> Any:
    """The tree, its scalars of one dtype written by two kernels instead of one for each."""
    leaves, treedef = jax.tree.flatten(tree)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves if leaf.ndim == 0):
        which = [index for index, leaf in enumerate(leaves) if leaf.ndim == 0 and leaf.dtype == dtype]
        if len(which) > 1:
            joined = jax.lax.optimization_barrier(jnp.stack([leaves[index] for index in which]))
            for place, index in enumerate(which):
                leaves[index] = _computed(joined[place])
    return treedef.unflatten(leaves)


def on_mesh(shapes: Any, mesh: Mesh) -> Any:
    """The same shapes and dtypes, placed on `mesh`: replicated, or split over `fsdp` where that is more than 1."""
    return each_weight(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=state_sharding(a.shape, mesh)), shapes)


def loosened(tree: Any) -> Any:
    """The tree with what is packed in it as checkpoints hold it: the vectors in one, the other leaves by themselves."""

    def loose(packed: Packed) -> Arrays:
        leaves = jax.tree.leaves(unpack(packed))
        return {"vectors": packed.vectors, "others": tuple(leaf for leaf in leaves if leaf.ndim >= 2)}

    return jax.tree.map(lambda node: loose(node) if _is_packed(node) else node, tree, is_leaf=_is_packed)


def tightened(tree: Any, params: Packed) -> Any:
    """The inverse of `loosened`, for trees whose packed parts are packed as `params` are."""

    def tight(node: Arrays) -> Packed:
        vectors, others = _each_vector(node["vectors"], params.shapes), iter(node["others"])
        return pack(params.treedef.unflatten([next(others if s is None else vectors) for s in params.shapes]))

    return jax.tree.map(lambda node: tight(node) if _is_loose(node) else node, tree, is_leaf=_is_loose)


def _is_packed(node: Any) -> bool:
    return isinstance(node, Packed)


def _is_loose(node: Any) -> bool:
    return isinstance(node, dict) and set(node) == {"vectors", "others"}


def _each_vector(joined: Any, shapes: tuple[tuple[int, ...] | None, ...]) -> Iterator[Any]:
    """The leaves that `Packed.vectors` holds, in the tree's order."""
    vectors = tuple(shape for shape in shapes if shape is not None)
    return iter(_applied(functools.partial(_cut, shapes=vectors), joined) if vectors else ())


def _applied(function: Any, arrays: Any, spec: Callable[[tuple], tuple] = lambda spec: spec) -> Any:
    """`function(arrays)`; of shapes on devices the shapes of its results. What is split stays so, as `spec` says."""
    first = jax.tree.leaves(arrays)[0]
    placed = None if isinstance(first, jax.core.Tracer) else getattr(first, "sharding", None)
    if isinstance(placed, NamedSharding):
        placed = NamedSharding(placed.mesh, PartitionSpec(*spec(tuple(placed.spec))))
    if isinstance(first, jax.ShapeDtypeStruct):
        results = jax.eval_shape(function, arrays)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placed), results)
    if not isinstance(placed, NamedSharding):
        return function(arrays)
    return jax.device_put(function(arrays), placed)


@jax.jit
def _join(vectors: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([vector.ravel() for vector in vectors])


@functools.partial(jax.jit, static_argnames="shapes")
def _cut(joined: jax.Array, *, shapes: Shapes) -> list[jax.Array]:
    return _slices(joined, shapes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _slices(joined: jax.Array, shapes: Shapes) -> list[jax.Array]:
    edges = list(accumulate(map(math.prod, shapes), initial=0))
    return [_computed(joined[a:b]).reshape(shape) for (a, b), shape in zip(pairwise(edges), shapes, strict=True)]


# Autodiff would add up as many padded vectors as there are slices.
_slices.defvjp(lambda joined, shapes: (_slices(joined, shapes), None), lambda _shapes, _, parts: (_join(parts),))


def _computed(array: jax.Array) -> jax.Array:
    """The array, times a 1 that XLA cannot see: it writes slices of what is computed by one kernel for all."""
    return array * jax.lax.optimization_barrier(jnp.ones((), array.dtype))


@jax.jit
def _stack(arrays: list[jax.Array]) -> jax.Array:
    if not 1 < len(arrays) <= _FEW:
        return jnp.stack(arrays)
    return jax.lax.platform_dependent(arrays, cuda=_padded_and_added, default=jnp.stack)


def _padded_and_added(arrays: list[jax.Array]) -> jax.Array:
    """`jnp.stack`, but that -0 becomes 0, in a form that XLA's GPU code takes into the kernel that needs it."""
    zero, edges = jnp.zeros((), arrays[0].dtype), [(0, 0, 0)] * arrays[0].ndim
    places = [(index, len(arrays) - 1 - index, 0) for index in range(len(arrays))]
    padded = [jax.lax.pad(array[None], zero, [place, *edges]) for place, array in zip(places, arrays, strict=True)]
    return functools.reduce(jnp.add, padded)


@jax.jit
@jax.custom_vjp
def _rows(stack: jax.Array) -> list[jax.Array]:
    stack = _computed(stack)
    return [stack[index] for index in range(stack.shape[0])]


_rows.__wrapped__.defvjp(lambda stack: (_rows(stack), None), lambda _, parts: (_stack(parts),))
