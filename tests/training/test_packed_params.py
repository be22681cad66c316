import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec, SingleDeviceSharding

from aia_jax.training import packed_params, sharding
from aia_jax.training.packed_params import each_weight, loosened, on_mesh, pack, tightened, together, unpack

TREE = {
    "b": {"bias": jnp.arange(3.0), "kernel": jnp.ones((2, 3)), "wide": jnp.arange(8.0).reshape(2, 4)},
    "a": {"scalar": jnp.float32(7), "scale": jnp.arange(5.0, 9.0), "kernel": 2 * jnp.ones((2, 3))},
}


def test_what_is_packed_comes_back():
    packed = pack(TREE)
    assert packed.vectors.shape == (8,)
    assert [stack.shape for stack in packed.stacks] == [(2, 2, 3), (1, 2, 4)]
    np.testing.assert_array_equal(packed.stacks[0][:, 0, 0], [2, 1])
    jax.tree.map(np.testing.assert_array_equal, unpack(packed), TREE)


def test_a_tree_without_vectors_and_one_without_others():
    for tree in ({"kernel": jnp.ones((2, 2))}, {"bias": jnp.ones(2)}, {}):
        jax.tree.map(np.testing.assert_array_equal, unpack(pack(tree)), tree)


def test_what_is_empty_packs_to_nothing():
    mesh = sharding.data_mesh()
    for tree, count in (({}, 0), ({"kernel": jnp.ones((2, 2))}, 1)):
        leaves = jax.tree.leaves(on_mesh(jax.eval_shape(pack, tree), mesh))
        assert [(type(leaf), leaf.sharding.mesh) for leaf in leaves] == count * [(jax.ShapeDtypeStruct, mesh)]
        packed = pack(tree)
        assert packed.vectors is None
        assert jax.tree.structure(tightened(loosened(packed), packed)) == jax.tree.structure(packed)


def test_gradients_are_packed_like_the_weights():
    def loss(tree):
        both = (tree["b"]["kernel"] * tree["a"]["kernel"]) @ tree["b"]["bias"]
        return both.sum() + tree["a"]["scalar"] * tree["a"]["scale"].sum() + jnp.square(tree["b"]["wide"]).sum()

    grads = jax.jit(jax.grad(lambda packed: loss(unpack(packed))))(pack(TREE))
    jax.tree.map(np.testing.assert_array_equal, unpack(grads), jax.grad(loss)(TREE))
    assert jax.tree.structure(grads) == jax.tree.structure(pack(TREE))


def test_shapes_on_devices_are_packed_as_arrays_are():
    sharding = SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), TREE)
    packed = pack(shapes)
    assert packed.vectors == jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)
    assert unpack(packed) == shapes


def test_checkpoints_hold_each_weight_by_itself():
    packed = pack(TREE)
    loose = loosened({"moments": packed, "count": jnp.int32(3)})
    assert [leaf.shape for leaf in loose["moments"]["others"]] == [(2, 3), (2, 3), (2, 4)]
    np.testing.assert_array_equal(loose["moments"]["vectors"], packed.vectors)
    back = tightened(loose, packed)
    assert jax.tree.structure(back["moments"]) == jax.tree.structure(packed)
    jax.tree.map(np.testing.assert_array_equal, back, {"moments": packed, "count": jnp.int32(3)})


def test_weights_are_split_over_devices_as_they_would_be_by_themselves():
    mesh = sharding.data_mesh(fsdp=4)
    tree = {"a": jnp.ones((256, 128)), "b": jnp.ones((256, 128)), "small": jnp.ones((4, 4)), "bias": jnp.ones(3)}
    placed = on_mesh(jax.eval_shape(pack, tree), mesh)
    assert [stack.sharding.spec for stack in placed.stacks] == [PartitionSpec(None, "fsdp"), PartitionSpec(None)]
    split = jax.tree.map(lambda leaf: jax.device_put(leaf, sharding.state_sharding(leaf.shape, mesh)), tree)
    packed = pack(split)
    assert packed.stacks[0].sharding == placed.stacks[0].sharding
    assert jax.tree.map(lambda a: a.sharding, unpack(packed)) == jax.tree.map(lambda a: a.sharding, split)


def test_what_is_done_to_each_weight_is_not_done_to_their_stack():
    doubled = each_weight(lambda leaf: leaf / jnp.abs(leaf).max(), {"params": pack(TREE), "count": jnp.float32(2)})
    assert doubled["count"] == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b / jnp.abs(b).max()), unpack(doubled["params"]), TREE)


def test_vectors_of_several_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"vectors of several dtypes: \['bfloat16', 'float32'\]"):
        pack({"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)})


def test_scalars_taken_together_are_themselves():
    scalars = {
        "step": jnp.int32(2**31 - 1),
        "count": jnp.int32(-3),
        "rate": jnp.float32(1e-38),
        "loss": jnp.float32(jnp.nan),
    }
    tree = {**scalars, "alone": jnp.bool_(True), "weights": jnp.ones((2, 3))}
    jax.tree.map(np.testing.assert_array_equal, jax.jit(together)(tree), tree)
    assert jax.tree.map(lambda a: a.dtype, together(tree)) == jax.tree.map(lambda a: a.dtype, tree)


def test_few_arrays_are_stacked_on_gpus_as_elsewhere():
    arrays = [jnp.full((2, 3), value) for value in (1.5, -2.0, jnp.inf, 4.0)]
    np.testing.assert_array_equal(packed_params._padded_and_added(arrays), jnp.stack(arrays))
