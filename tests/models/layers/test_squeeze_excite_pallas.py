"""Gates in Pallas kernels, interpreted, against the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aia_jax.models.layers import squeeze_excite, squeeze_excite_pallas
from aia_jax.models.layers.norm_act_se import GateOptions, norm_act_gate

POSITIONS = 12


def _normal(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), jnp.float32)


@pytest.fixture
def interpreted(monkeypatch):
    """Has the kernels used on this machine, interpreted."""

    def ours(wanted, plain, kernel, positions, *arrays):
        assert wanted
        return kernel(positions, *arrays, interpret=True)

    monkeypatch.setattr(squeeze_excite_pallas, "choose", ours)


@pytest.mark.parametrize("slope", [1.0, 1e-3])
def test_kernels_give_what_the_plain_formula_gives(slope, interpreted, monkeypatch):
    x, weight, bias = _normal(32, 6, 10, 32, seed=0) + 1, _normal(32, seed=1), _normal(32, seed=2)
    gate_weights = _normal(32, 16, seed=3), _normal(16, seed=4), _normal(16, 32, seed=5), _normal(32, seed=6)
    dy = _normal(*x.shape, seed=7)

    def run(kernels):
        def call(*arguments):
            return norm_act_gate(*arguments, GateOptions(slope, 1e-5, kernels))[0]

        y, pull = jax.vjp(call, x, weight, bias, gate_weights)
        return y, pull(dy)

    ours = run(True)
    monkeypatch.undo()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(run(False)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))


def test_shapes_that_triton_does_not_take_are_computed_plainly():
    def plain(*arrays):
        return "plain"

    rows, odd = jnp.ones((32, 2, 48)), jnp.ones(48)
    assert (
        squeeze_excite_pallas.choose(True, plain, squeeze_excite_pallas.opened, POSITIONS, rows, rows, odd) == "plain"
    )
    few = jnp.ones((8, 2, 64))
    assert (
        squeeze_excite_pallas.choose(True, plain, squeeze_excite_pallas.opened, POSITIONS, few, few, jnp.ones(64))
        == "plain"
    )
    assert (
        squeeze_excite_pallas.choose(False, plain, squeeze_excite_pallas.opened, POSITIONS, rows, rows, odd) == "plain"
    )


def test_on_a_cpu_the_plain_formula_is_used():
    rows, vector = jnp.ones((16, 2, 32)), jnp.ones(32)
    kernels = jnp.ones((32, 16)), jnp.ones(16), jnp.ones((16, 32)), vector
    parts = squeeze_excite.Sums(rows, rows, 0 * vector, vector)

    def opened(wanted):
        return squeeze_excite.open_gates(parts, vector, vector, kernels, POSITIONS, linear=False, kernels=wanted)

    jax.tree.map(np.testing.assert_allclose, opened(True), opened(False))
