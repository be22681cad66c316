import jax.numpy as jnp
import numpy as np
from flax import nnx

from aia_jax.models.layers.gru import BidirectionalGRU, reverse
from tests.helpers.references import largest_error, reference


def test_reversed_sequences_keep_their_padding_in_place():
    x = np.arange(8).reshape(2, 4, 1)
    np.testing.assert_array_equal(reverse(x, np.array([3, 1]))[..., 0], [[2, 1, 0, 3], [4, 5, 6, 7]])


def test_a_gru_equals_torchs_on_packed_sequences():
    gru = BidirectionalGRU(5, 7, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(3))
    parts = {"weight_ih": "input_kernel", "weight_hh": "hidden_kernel"}
    parts |= {"bias_ih": "input_bias", "bias_hh": "hidden_bias"}
    rng, state = np.random.default_rng(0), {}
    for direction, suffix in ((gru.forward, ""), (gru.backward, "_reverse")):
        for theirs, ours in parts.items():
            value = rng.uniform(-0.4, 0.4, getattr(direction, ours).shape).astype(np.float32)
            getattr(direction, ours)[...], state[f"{theirs}_l0{suffix}"] = jnp.asarray(value), value.T
    lengths = np.array([6, 4, 1], np.int32)
    x = rng.normal(size=(3, 6, 5)).astype(np.float32)
    mask = np.arange(6) < lengths[:, None]

    def compute():
        from tests.helpers.torch_oracles import load, torch

        oracle = load(torch.nn.GRU(5, 7, batch_first=True, bidirectional=True), state)
        with torch.no_grad():
            packed = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(x), lengths.tolist(), batch_first=True)
            padded, _ = torch.nn.utils.rnn.pad_packed_sequence(oracle(packed)[0], batch_first=True)
        return {"states": ((padded[..., :7] + padded[..., 7:]) / 2).numpy()[mask]}

    expected = reference("layers/gru", compute)["states"]
    assert largest_error(np.asarray(gru(x, lengths))[mask], expected) <= 1e-6
