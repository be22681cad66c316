"""AMC without its visual attention, by sums that are kept: the scores of 100,000 images in a blink, for a shortlist."""

import jax.numpy as jnp
from jax import Array

from aia_jax.models.amc import AMC, Encoded
from aia_jax.models.layers.common import EPSILON, l2norm

Summary = dict[str, Array]


def summarize(model: AMC, images: Encoded) -> Summary:
    """What `rough_scores` needs of encoded images.

    Returns:
        `keywords` `[I, K]` and `counts` `[I]`; float32 `mean` `[I, d]` of the cells, `cross` `[I, K]`, its products
        with the keywords' embeddings, and `gram` `[I, K, K]`, theirs among themselves.
    """
    mean = images["cells"].astype(jnp.float32).mean(axis=(1, 2))
    embedded = model.keywords[...].astype(jnp.float32)[images["keywords"]]
    return {
        "keywords": images["keywords"],
        "counts": images["counts"],
        "mean": mean,
        "cross": jnp.einsum("id,ikd->ik", mean, embedded),
        "gram": jnp.einsum("ikd,ijd->ikj", embedded, embedded),
    }


def rough_scores(model: AMC, images: Summary, queries: Encoded) -> Array:
    """The scores `[I, Q]` that `AMC.attend` gives where the visual attention is even everywhere."""
    table, keywords = model.keywords[...], images["keywords"]
    compared, matched = l2norm(queries["compared"]), l2norm(queries["matched"])
    shares = model.keyword_shares(queries["asked"], keywords, images["counts"])
    of_words = jnp.einsum("xqd,vd->vxq", jnp.stack([compared, matched]), table)[keywords]
    read_compared, read_matched = jnp.einsum("iqk,ikxq->xiq", shares, of_words)
    seen_compared, seen_matched = (images["mean"] @ query.T for query in (compared, matched))
    seen_square = jnp.square(images["mean"]).sum(axis=1)[:, None]
    read_square = jnp.einsum("iqk,ikj,iqj->iq", shares, images["gram"], shares)
    cosines = seen_compared / _length(seen_square), read_compared / _length(read_square)
    visual, keyword = jnp.moveaxis(model.weigh(*cosines, images["counts"]), -1, 0)
    both = jnp.einsum("iqk,ik->iq", shares, images["cross"])
    square = visual**2 * seen_square + 2 * visual * keyword * both + keyword**2 * read_square
    return (visual * seen_matched + keyword * read_matched) / _length(square)


def _length(square: Array) -> Array:
    return jnp.sqrt(jnp.maximum(square, 0)) + EPSILON
