"""Attention pooling: a decoder with one query for each label (Salar & Ahmadi 2024, doi 10.1007/s00371-024-03618-6).

Shapes: B images, C labels, h x w = P image positions, F feature channels, D hidden size.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from aia_jax.models.backbones import look_up
from aia_jax.models.layers.common import Frozen, dropout, dropout_key, relu, split_key, torch_linear, uniform
from aia_jax.utils.errors import InputError

# The fields of `config.model` that are arguments of `AttentionPooling`.
HEAD_FIELDS = (
    *("hidden_size", "num_heads", "num_layers", "feedforward_size", "dropout", "activation", "norm_first"),
    *("self_attention", "keep_query_position"),
)
ACTIVATIONS = {"relu": relu, "gelu": partial(jax.nn.gelu, approximate=False)}


class LayerNorm(nnx.LayerNorm):
    """Layer norm over the last axis, computed in float32, with PyTorch's epsilon. The result has the dtype `dtype`.

    If `dtype` is float32, the variance is the mean of `(x - mean)^2`, which has no cancellation error.
    """

    def __init__(self, num_features: int, *, dtype: DTypeLike, **options):
        self.output_dtype = dtype
        fast = dtype != jnp.float32
        super().__init__(num_features, epsilon=1e-5, use_fast_variance=fast, dtype=jnp.float32, **options)

    def __call__(self, x: Array) -> Array:
        """Normalises `x` `[..., D]`."""
        return super().__call__(x.astype(self.output_dtype)).astype(self.output_dtype)


class MultiHeadAttention(nnx.Module):
    """Scaled dot-product attention with several heads (Vaswani et al., arXiv 1706.03762), with a float32 softmax."""

    def __init__(self, hidden_size: int, num_heads: int, *, dropout: float, dtype: DTypeLike, **options):
        if hidden_size % num_heads:
            raise InputError(f"hidden_size {hidden_size} is no multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.dtype = dtype
        linear = partial(nnx.Linear, hidden_size, hidden_size, dtype=dtype, **options)
        # PyTorch stores query, key and value as one [3 * hidden, hidden] matrix. This is the matrix's Xavier bound.
        packed = uniform(math.sqrt(6 / (4 * hidden_size)))
        self.query = linear(kernel_init=packed)
        self.key = linear(kernel_init=packed)
        self.value = linear(kernel_init=packed)
        self.out = linear(kernel_init=initializers.xavier_uniform())

    def __call__(self, query: Array, keys: Array, values: Array, *, key: Array | None) -> tuple[Array, Array]:
        """Attends from every query to all positions.

        Args:
            query: `[1 or B, C, D]`. If the first axis has length 1, all images share the queries.
            keys, values: `[1 or B, P, D]`, vectors of the P positions.
            key: random key for dropout of the attention weights. None means no dropout.

        Returns:
            Pooled vectors `[B, C, D]`, and the mean attention weights of the heads after dropout, float32 `[B, C, P]`.
        """
        q = self._split_heads(self.query(query))
        k = self._split_heads(self.key(keys))
        v = self._split_heads(self.value(values))
        q = q / math.sqrt(q.shape[-1])
        scores = jnp.einsum("chd,bphd->bhcp", q[0], k) if q.shape[0] == 1 else jnp.einsum("bchd,bphd->bhcp", q, k)
        weights = dropout(jax.nn.softmax(scores.astype(jnp.float32)), self.dropout, key)
        pooled = jnp.einsum("bhcp,bphd->bchd", weights.astype(self.dtype), v)
        return self.out(pooled.reshape(*pooled.shape[:2], -1)), weights.mean(axis=1)

    def _split_heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)


class DecoderLayer(nnx.Module):
    """Self-attention (optional), attention to the image and a feed-forward network, each with a residual connection."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        feedforward_size: int,
        *,
        dropout: float,
        activation: str,
        norm_first: bool,
        self_attention: bool,
        **options,
    ):
        attention = partial(MultiHeadAttention, hidden_size, num_heads, dropout=dropout, **options)
        self.dropout = dropout
        self.activation = activation
        self.norm_first = norm_first
        self.self_attention = attention() if self_attention else None
        self.norm1 = LayerNorm(hidden_size, **options) if self_attention else None
        self.cross_attention = attention()
        self.norm2 = LayerNorm(hidden_size, **options)
        xavier = initializers.xavier_uniform()
        self.linear1 = torch_linear(hidden_size, feedforward_size, kernel_init=xavier, **options)
        self.linear2 = torch_linear(feedforward_size, hidden_size, kernel_init=xavier, **options)
        self.norm3 = LayerNorm(hidden_size, **options)

    def __call__(self, x: Array, positions: Array, position: Array | None, *, key: Array | None) -> tuple[Array, Array]:
        """Updates the queries.

        Args:
            x: queries `[1 or B, C, D]`.
            positions: image features `[B, P, D]`.
            position: query embedding `[1, C, D]`, added to the queries in each attention. None: nothing is added.
            key: random key for dropout. None means no dropout.

        Returns:
            Queries `[B, C, D]` and attention maps `[B, C, P]`.
        """

        def queries(y: Array) -> Array:
            return y if position is None else y + position

        def before(norm: LayerNorm, y: Array) -> Array:
            return norm(y) if self.norm_first else y

        def add(norm: LayerNorm, x: Array, y: Array, key: Array | None) -> Array:
            x = x + dropout(y, self.dropout, key)
            return x if self.norm_first else norm(x)

        keys = split_key(key, 6)
        if self.self_attention is not None:
            y = before(self.norm1, x)
            mixed, _ = self.self_attention(queries(y), queries(y), y, key=keys[0])
            x = add(self.norm1, x, mixed, keys[1])
        y = before(self.norm2, x)
        pooled, attention = self.cross_attention(queries(y), positions, positions, key=keys[2])
        x = add(self.norm2, x, pooled, keys[3])
        hidden = ACTIVATIONS[self.activation](self.linear1(before(self.norm3, x)))
        return add(self.norm3, x, self.linear2(dropout(hidden, self.dropout, keys[4])), keys[5]), attention


class AttentionPooling(nnx.Module):
    """Pools image features by attention, with one query for each label, and scores each label from its pooled vector.

    Attributes:
        query_embedding: `[C, D]`, one row per label, initially standard normal. Trained only with `self_attention`.
        weight, bias: `[C, D]` and `[C]`, the weights and the bias for the score of each label.
    """

    def __init__(
        self,
        num_labels: int,
        num_features: int,
        *,
        hidden_size: int = 1024,
        num_heads: int = 8,
        num_layers: int = 1,
        feedforward_size: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        norm_first: bool = True,
        self_attention: bool = False,
        keep_query_position: bool = True,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the head.

        Args:
            num_labels, num_features: C and F.
            hidden_size, num_heads, num_layers, feedforward_size, dropout: sizes and dropout rate of the decoder.
            activation: activation of the feed-forward part, 'relu' or 'gelu' (exact).
            norm_first: True: layer norm before each attention and the feed-forward network. False: after each residual.
            self_attention: whether the queries attend to each other before they attend to the image.
            keep_query_position: True: the queries are zeros at first, and each attention adds the query embedding.
                False: the queries are the query embedding at first.

        Raises:
            InputError: unknown activation, or `hidden_size` is no multiple of `num_heads`.
        """
        look_up("activation", activation, ACTIVATIONS)  # checks the name
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.dropout = dropout
        self.self_attention = self_attention
        self.keep_query_position = keep_query_position
        self.dtype = dtype
        self.projection = torch_linear(num_features, hidden_size, **options)
        embedding = jax.random.normal(rngs.params(), (num_labels, hidden_size), param_dtype)
        self.query_embedding = nnx.Param(embedding) if self_attention else Frozen(embedding)
        parts = {"activation": activation, "norm_first": norm_first, "self_attention": self_attention}
        layer = partial(DecoderLayer, hidden_size, num_heads, feedforward_size, dropout=dropout, **parts, **options)
        self.layers = nnx.List(layer() for _ in range(num_layers))
        self.norm = LayerNorm(hidden_size, **options)
        # For a (1, labels, hidden) tensor, PyTorch's Xavier normal has fan-in labels * hidden and fan-out hidden.
        std = math.sqrt(2 / (num_labels * hidden_size + hidden_size))
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (num_labels, hidden_size), param_dtype))
        self.bias = nnx.Param(jnp.zeros((num_labels,), param_dtype))

    def __call__(self, features: Array, *, train: bool, key: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Scores every label.

        Args:
            features: `[B, h, w, F]`.
            train: whether to apply dropout.
            key: random key for dropout, required if `train` is True and the dropout rate is above 0.

        Returns:
            Logits float32 `[B, C]`, and a dict of intermediate results:
            'projection': `[B, h, w, D]`, the features that the queries attend to.
            'attention': float32 `[B, C, h, w]`, the last layer's attention, averaged over the heads. Without dropout,
                each map sums to 1.
        """
        batch, height, width, _ = features.shape
        key = dropout_key(key, self.dropout, train)
        positions = relu(self.projection(features.reshape(batch, height * width, -1)))
        embedding = self.query_embedding[...].astype(self.dtype)[None]
        x, position = (jnp.zeros_like(embedding), embedding) if self.keep_query_position else (embedding, None)
        if self.self_attention and key is not None:
            # Dropout changes self-attention in a different way for each image, so each image needs its own queries.
            x = jnp.broadcast_to(x, (batch, *x.shape[1:]))
        attention = None
        for layer, layer_key in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x, attention = layer(x, positions, position, key=layer_key)
        logits = (self.norm(x).astype(jnp.float32) * self.weight[...]).sum(axis=-1) + self.bias[...]
        return logits, {
            "projection": positions.reshape(batch, height, width, -1),
            "attention": attention.reshape(batch, -1, height, width),
        }
