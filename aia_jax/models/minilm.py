"""MiniLM, a BERT that encodes texts: texts of similar meaning get similar vectors.

Sources: "MiniLM: Deep Self-Attention Distillation" (Wang et al., NeurIPS 2020, https://arxiv.org/abs/2002.10957) and
"Sentence-BERT" (Reimers & Gurevych, EMNLP 2019, https://arxiv.org/abs/1908.10084). The sizes and formulas are those of
`sentence-transformers/all-MiniLM-L6-v2`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from aia_jax.models.layers.common import l2norm

WIDTH = 384  # size of the vectors of texts and tokens
_LAYERS, _HEADS, _HIDDEN = 6, 12, 1536
WORD_PIECES, _POSITIONS, _SEGMENTS = 30522, 512, 2
_EPSILON = 1e-12  # added to variances in layer norms


class Layer(nnx.Module):
    """Layer of BERT: self-attention and a feed-forward network, each with a residual sum and then a layer norm."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.query, self.key, self.value, self.out = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4))
        self.attention_norm = nnx.LayerNorm(WIDTH, epsilon=_EPSILON, rngs=rngs)
        self.expand = nnx.Linear(WIDTH, _HIDDEN, rngs=rngs)
        self.project = nnx.Linear(_HIDDEN, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=_EPSILON, rngs=rngs)

    def __call__(self, x: Array, mask: Array) -> Array:
        """Maps `[B, L, 384]` to `[B, L, 384]`. Tokens attend to the tokens where `mask`, bool `[B, L]`, is True."""
        parts = (linear(x).reshape(*x.shape[:2], _HEADS, -1) for linear in (self.query, self.key, self.value))
        attended = jax.nn.dot_product_attention(*parts, mask=mask[:, None, None, :])
        x = self.attention_norm(x + self.out(attended.reshape(x.shape)))
        return self.norm(x + self.project(jax.nn.gelu(self.expand(x), approximate=False)))


class MiniLM(nnx.Module):
    """Encodes texts. Padding does not change the results."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.words = nnx.Embed(WORD_PIECES, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(_POSITIONS, WIDTH, rngs=rngs)
        self.segments = nnx.Embed(_SEGMENTS, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=_EPSILON, rngs=rngs)
        self.layers = nnx.List(Layer(rngs=rngs) for _ in range(_LAYERS))

    def __call__(self, tokens: Array, lengths: Array) -> tuple[Array, Array]:
        """Encodes B texts of up to L tokens.

        Args:
            tokens: ids of word pieces, int `[B, L]` with L <= 512, padded with any ids.
            lengths: number of tokens of each text, int `[B]`. A row of length 0 is padding.

        Returns:
            sentence: mean of the last layer over the tokens of each text, normalised, `[B, 384]`.
            tokens: the last layer, `[B, L, 384]`, 0 at padding.
        """
        positions = jnp.arange(tokens.shape[1])
        mask = positions < lengths[:, None]
        x = self.norm(self.words(tokens) + self.positions(positions) + self.segments.embedding[0])
        for layer in self.layers:
            x = layer(x, mask)
        x = jnp.where(mask[..., None], x, 0)
        return l2norm(x.sum(axis=1)), x
