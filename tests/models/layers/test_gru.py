import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aia_jax.models.layers.gru import BidirectionalGRU, reverse


def test_reverse_keeps_the_padding_where_it_is():
    x = np.arange(8).reshape(2, 4, 1)
    np.testing.assert_array_equal(reverse(x, np.array([3, 1]))[..., 0], [[2, 1, 0, 3], [4, 5, 6, 7]])


def test_it_equals_torch_on_packed_sequences():
    torch = pytest.importorskip("torch")
    gru = BidirectionalGRU(5, 7, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(3))
    oracle = torch.nn.GRU(5, 7, batch_first=True, bidirectional=True)
    for direction, suffix in ((gru.forward, ""), (gru.backward, "_reverse")):
        for ours, theirs in (("input_kernel", "weight_ih"), ("hidden_kernel", "weight_hh")):
            value = torch.from_numpy(np.array(getattr(direction, ours)[...]).T.copy())
            getattr(oracle, f"{theirs}_l0{suffix}").data = value
        for ours, theirs in (("input_bias", "bias_ih"), ("hidden_bias", "bias_hh")):
            getattr(oracle, f"{theirs}_l0{suffix}").data = torch.from_numpy(np.array(getattr(direction, ours)[...]))
    lengths = np.array([6, 4, 1], np.int32)
    x = np.random.default_rng(0).normal(size=(3, 6, 5)).astype(np.float32)
    with torch.no_grad():
        packed = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(x), lengths.tolist(), batch_first=True)
        padded, _ = torch.nn.utils.rnn.pad_packed_sequence(oracle(packed)[0], batch_first=True)
    expected = (padded[..., :7] + padded[..., 7:]).numpy() / 2
    mask = np.arange(6) < lengths[:, None]
    np.testing.assert_allclose(np.asarray(gru(x, lengths))[mask], expected[mask], atol=1e-6)
