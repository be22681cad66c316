import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from aia_jax.training.packing import pack, unpack

TREE = {
    "b": {"bias": jnp.arange(3.0), "kernel": jnp.ones((2, 3))},
    "a": {"scalar": jnp.float32(7), "scale": jnp.arange(5.0, 9.0)},
}


def test_what_is_packed_comes_back():
    packed = pack(TREE)
    assert packed.vectors.shape == (8,)
    assert [leaf.shape for leaf in packed.others] == [(2, 3)]
    jax.tree.map(np.testing.assert_array_equal, unpack(packed), TREE)


def test_a_tree_without_vectors_and_one_without_others():
    for tree in ({"kernel": jnp.ones((2, 2))}, {"bias": jnp.ones(2)}, {}):
        jax.tree.map(np.testing.assert_array_equal, unpack(pack(tree)), tree)


def test_gradients_are_packed_like_the_weights():
    def loss(tree):
        return (tree["b"]["kernel"] @ tree["b"]["bias"]).sum() + tree["a"]["scalar"] * tree["a"]["scale"].sum()

    grads = jax.jit(jax.grad(lambda packed: loss(unpack(packed))))(pack(TREE))
    jax.tree.map(np.testing.assert_array_equal, unpack(grads), jax.grad(loss)(TREE))
    assert jax.tree.structure(grads) == jax.tree.structure(pack(TREE))


def test_shapes_on_devices_are_packed_as_arrays_are():
    sharding = SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), TREE)
    packed = pack(shapes)
    assert packed.vectors == jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)
    assert unpack(packed) == shapes


def test_vectors_of_several_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"vectors of several dtypes: \['bfloat16', 'float32'\]"):
        pack({"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)})
