"""The functions with backward passes of their own, on one device and on four."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from aia_jax.models.layers.attention import attend
from aia_jax.models.layers.layer_norm import _normalised_rows
from aia_jax.models.layers.norm_act_se import GateOptions, norm_act_gate
from aia_jax.models.layers.squeeze_excite import gate_images
from aia_jax.training.sharding import data_mesh

BATCH = 8


def _normal(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), jnp.float32)


GATE = _normal(6, 4, seed=1), _normal(4, seed=2), _normal(4, 6, seed=3), _normal(6, seed=4)
FUNCTIONS = {
    "attention": lambda x: attend(x[:, :3], 2 * x, x, None, 0.0)[0],
    "layer norm": lambda x: _normalised_rows(x, GATE[3], 1 + GATE[3], 1e-5),
    "gate": lambda x: gate_images(x, GATE),
    "norm and gate": lambda x: norm_act_gate(x, 1 + GATE[3], GATE[3], GATE, GateOptions(0.1, 1e-5))[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_on_four_devices_are_those_of_one(name):
    x, dy = _normal(BATCH, 5, 4, 6, seed=5), _normal(BATCH, 5, 4, 6, seed=6)

    def gradients(num_devices):
        mesh = data_mesh(jax.devices()[:num_devices])
        rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

        def run(x, dy):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                y, pull = jax.vjp(FUNCTIONS[name], x)
                return y, pull(dy[:, : y.shape[1]])[0]

        return jax.jit(run, in_shardings=(rows, rows))(x, dy)

    for many, one in zip(gradients(4), gradients(1), strict=True):
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-5 * float(jnp.abs(one).max()))
