from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from aia_jax.configs import corel5k
from aia_jax.models.annotator import build_annotator
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights
from aia_jax.training.trainer import Trainer
from aia_jax.utils.errors import InputError
from tests.helpers.toy_task import ToyTask, toy_config


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_the_mesh_keeps_the_order_of_devices(fsdp):
    mesh = sharding.data_mesh(fsdp=fsdp)
    assert mesh.shape == {"data": 8 // fsdp, "fsdp": fsdp}
    assert list(mesh.devices.flat) == jax.devices()


class Device(SimpleNamespace):
    __hash__ = object.__hash__


def test_the_devices_of_a_process_are_consecutive():
    common = {"platform": "cpu", "device_kind": "cpu", "client": None}
    devices = [Device(process_index=number % 2, id=number, **common) for number in range(8)]
    mesh = sharding.data_mesh(devices, fsdp=2)
    assert [device.id for device in mesh.devices.flat] == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("fsdp", [0, 3, 16, -1])
def test_fsdp_that_does_not_divide_the_devices_is_refused(fsdp):
    with pytest.raises(InputError, match=rf"mesh.fsdp={fsdp} does not divide the 8 devices; possible: 1, 2, 4, 8"):
        sharding.data_mesh(fsdp=fsdp)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), PartitionSpec(None, None, None, "fsdp")),
        ((3, 3, 128, 64), PartitionSpec(None, None, "fsdp")),
        ((1024, 1024), PartitionSpec(None, "fsdp")),
        ((500, 1021), PartitionSpec("fsdp")),
        ((16384,), PartitionSpec()),  # a vector
        ((16380,), PartitionSpec()),  # small
        ((1021, 1021), PartitionSpec()),  # indivisible
        ((), PartitionSpec()),
    ],
)
def test_large_arrays_are_split_along_their_largest_divisible_axis(shape, spec):
    assert sharding.state_sharding(shape, sharding.data_mesh(fsdp=4)).spec == spec
    assert sharding.state_sharding(shape, sharding.data_mesh()).spec == PartitionSpec()


@pytest.mark.parametrize(
    ("batch_size", "microbatches", "message"),
    [
        (12, 1, r"config.batch_size=12 does not divide over 8 devices; use a multiple of 8, for example 16"),
        (24, 2, r"over 8 devices x 2 microbatches \(config.accumulate_steps\); use a multiple of 16"),
    ],
)
def test_batch_sizes_that_do_not_divide_are_refused(batch_size, microbatches, message):
    with pytest.raises(InputError, match=message):
        sharding.check_batch_size("batch_size", batch_size, sharding.data_mesh(fsdp=2), microbatches)
    sharding.check_batch_size("batch_size", 32, sharding.data_mesh(fsdp=2), 4)


def test_fsdp_divides_the_memory_of_the_state_on_a_device(tmp_path):
    used, names = {}, ("params", "opt_state", "ema")
    for fsdp in (1, 2, 8):
        config = toy_config(width=2**14, **{"mesh.fsdp": fsdp, "batch_size": 8, "eval.batch_size": 8})
        trainer = Trainer(config, ToyTask(config), tmp_path)
        state, batch = trainer.new_state(), next(trainer.task.train_batches(0))
        resident = sharding.put_replicated(trainer.task.resident_arrays(), trainer.mesh)
        state, _ = trainer.train_step(state, sharding.put_batch(batch, trainer.mesh), resident)
        kept = {name: [a for a in jax.tree.leaves(getattr(state, name)) if a.ndim > 1] for name in names}
        used[fsdp] = {name: sum(a.addressable_shards[5].data.nbytes for a in kept[name]) for name in names}
        assert trainer.train_step._cache_size() == 1
    for fsdp in (2, 8):
        for name, whole in used[1].items():
            assert whole / fsdp <= used[fsdp][name] <= whole / fsdp + 64, name


def test_fsdp_8_leaves_an_eighth_of_tresnet_m_on_a_device():
    config = corel5k.get_config()
    _, shapes = abstract_weights(lambda rngs: build_annotator(config.model, 260, rngs=rngs), sharding.data_mesh(fsdp=8))
    params = jax.tree.leaves(shapes["raw"]["params"])
    whole = sum(leaf.size for leaf in params)
    local = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in params)
    assert whole / 8 < local < 1.05 * whole / 8


def test_a_gathered_array_is_the_array_that_was_put():
    mesh = sharding.data_mesh(fsdp=4)
    array = np.arange(2**15, dtype=np.float32).reshape(128, 256)
    placed = sharding.put_array(array, sharding.state_sharding(array.shape, mesh))
    assert placed.addressable_shards[0].data.shape == (128, 64)
    whole = sharding.gather({"a": placed, "b": jnp.ones(3)}, mesh)
    assert whole["a"].sharding.is_fully_replicated
    np.testing.assert_array_equal(whole["a"], array)
    assert sharding.put_array(whole["a"], placed.sharding).sharding == placed.sharding


def test_the_initial_weights_do_not_depend_on_fsdp(tmp_path):
    configs = [toy_config(width=4096, **{"mesh.fsdp": fsdp}) for fsdp in (1, 8)]
    initial = [Trainer(config, ToyTask(config), tmp_path).new_state().params for config in configs]
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, initial))
