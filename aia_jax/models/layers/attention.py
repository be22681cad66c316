"""Scaled dot-product attention in reduced precision, in as few passes over its scores as XLA allows.

Scores and weights are larger than anything else of an attention head. They are written once each, in the order in which
the products write and read them; the exponentials are computed anew in each pass.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from aia_jax.models.layers.common import scaled_where


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q: Array, k: Array, v: Array, kept: Array | None, rate: float) -> tuple[Array, Array]:
    """Softmax of the queries' products with the keys, dropout, and the values' means by these weights.

    Args:
        q: queries `[1 or B, C, H, D]`, scaled; a leading 1 serves the whole batch.
        k, v: keys and values `[B, P, H, D]`; B is 1 where queries that serve the whole batch attend to each other.
        kept: which weights dropout keeps, `[B, H, P, C]`; None for all.
        rate: of dropout.

    Returns:
        `[B, C, H, D]` in the dtype of `v`, and the weights after dropout averaged over the heads, float32 `[B, C, P]`.
    """
    return _forward(q, k, v, kept, rate)[0]


def _forward(q, k, v, kept, rate):
    scores = jnp.einsum(f"{_queries(q)},bphd->hbpc", _shared(q), k)
    largest = scores.astype(jnp.float32).max(axis=2, keepdims=True)
    # The barriers make XLA read the scores in each pass; it would write the exponentials to memory.
    again, largest = jax.lax.optimization_barrier((scores, largest))
    total = _exponentials(again, largest).sum(axis=2, keepdims=True)
    again, largest, total = jax.lax.optimization_barrier((scores, largest, total))
    wide = scaled_where(_heads_first(kept), rate, _exponentials(again, largest) / total)
    weights = wide.astype(v.dtype)
    pooled = _product(weights, _heads_first(v, 2), 2, 2)
    out = pooled.transpose(1, 2, 0, 3), wide.mean(axis=0).swapaxes(1, 2)
    return out, (q, k, v, kept, scores, largest, total, weights)


def _backward(rate, residuals, cotangents):
    q, k, v, kept, scores, largest, total, weights = residuals
    dpooled, dmaps = _heads_first(cotangents[0], 2), cotangents[1].swapaxes(1, 2)
    dv = _product(weights, dpooled, 3, 2)
    dweights = _product(_heads_first(v, 2), dpooled, 3, 3)

    def parts(scores):
        cotangent = dweights.astype(jnp.float32) + dmaps / weights.shape[0]
        return _exponentials(scores, largest) / total, scaled_where(_heads_first(kept), rate, cotangent)

    scores = jax.lax.optimization_barrier(scores)
    softmax, wide = parts(scores)
    inner = (softmax * wide).sum(axis=2, keepdims=True)
    scores, inner = jax.lax.optimization_barrier((scores, inner))
    softmax, wide = parts(scores)
    # Both products below read what this barrier has written; they would each have it written in an order of their own.
    dscores = jax.lax.optimization_barrier((softmax * (wide - inner)).astype(scores.dtype))
    dk = jnp.einsum(f"hbpc,{_queries(q)}->bphd", dscores, _shared(q))
    dq = jnp.einsum(f"hbpc,bphd->{_queries(q)}", dscores, k).reshape(q.shape)
    return dq, dk, dv.transpose(1, 2, 0, 3), None


attend.defvjp(_forward, _backward)


def _queries(q: Array) -> str:
    return "chd" if q.shape[0] == 1 else "bchd"


def _shared(q: Array) -> Array:
    return q[0] if q.shape[0] == 1 else q


def _heads_first(x: Array | None, axis: int = 1) -> Array | None:
    return None if x is None else jnp.moveaxis(x, axis, 0)


def _product(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    """For each head and image, `[H, B, ...]`, the product over one axis of both."""
    return jax.lax.dot_general(left, right, (((left_axis,), (right_axis,)), ((0, 1), (0, 1))))


def _exponentials(scores: Array, largest: Array) -> Array:
    return jnp.exp(scores.astype(jnp.float32) - largest)
