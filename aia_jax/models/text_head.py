"""A head whose label queries are embeddings of the labels' texts. Labels can be added after training by their names.

Trained labels have the score sigmoid(logit). An added label c has no training. Its logit is

    logit_c = 0.37 (z_bilinear + z_conse) - 1.65

with the standardised logit of the bilinear form and the standardised log score of ConSE (`models/conse.py`). Mean and
standard deviation of both are those over up to 512 training images, whose pooled features the head keeps. So the score
needs no other photo. The two numbers were chosen such that at equal scores, equal fractions of trained and of added
labels are correct: both by logistic regression, on labels and photos that Corel-5k's training split held out.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers

from aia_jax.models.conse import class_probabilities, conse_scores, label_statistics
from aia_jax.models.layers.common import Frozen, dropout, dropout_key
from aia_jax.models.minilm import WIDTH

_NUM_REFERENCES = 512
_SLOPE, _OFFSET = 0.37, -1.65
_LEAST_DEVIATION = 1e-6


class TextHead(nnx.Module):
    """Global average pooling, dropout and a bilinear form of image and text.

        logit_c = s (W x + b) . u_c + t

    x `[F]` is the mean of the feature map. u_c `[D]` is the embedding of the text of label c, which is not trained. The
    embeddings are zeros at first; `AnnotationTask.initial_arrays` computes them.

    Attributes:
        embeddings: `[C, D]`.
        references: pooled features of the first 512 training images, `[512, F]`; rows of zeros are not filled yet.
    """

    def __init__(self, num_labels: int, num_features: int, *, dropout: float = 0.6, **options):
        self.dropout = dropout
        self.project = nnx.Linear(
            num_features,
            WIDTH,
            kernel_init=initializers.normal(0.01),
            preferred_element_type=jnp.float32,
            **options,
        )
        self.scale, self.offset = nnx.Param(jnp.ones(1)), nnx.Param(jnp.zeros(1))
        self.embeddings = Frozen(jnp.zeros((num_labels, WIDTH)))
        self.references = nnx.BatchStat(jnp.zeros((_NUM_REFERENCES, num_features)))

    def __call__(self, features: Array, *, train: bool, key: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Scores every label; see `AttentionPooling.__call__`. The returned dict is empty."""
        pooled = pool(features)
        if train:
            self._keep(pooled)
        pooled = dropout(pooled, self.dropout, dropout_key(key, self.dropout, train))
        return self.score(pooled, self.embeddings[...]), {}

    def score(self, pooled: Array, embeddings: Array) -> Array:
        """Computes the logits `[B, C]` of labels with any `embeddings` `[C, D]` from pooled features `[B, F]`."""
        return self.scale * (self.project(pooled) @ embeddings.T) + self.offset

    def _keep(self, pooled: Array) -> None:
        """Writes pooled features into the first rows of `references` that are not filled."""
        references, rows = self.references[...], jax.lax.stop_gradient(pooled[:_NUM_REFERENCES])
        start = is_filled(references).sum()  # near the end, earlier rows are replaced
        written = jax.lax.dynamic_update_slice(references, rows.astype(references.dtype), (start, 0))
        self.references[...] = jnp.where(start < len(references), written, references)


class OpenTextHead(nnx.Module):
    """Scores trained and added labels with a trained `TextHead` and a classifier of the same features.

    Args:
        head: the trained head, for C labels.
        classifier: kernel `[F, K]` and bias `[K]`.
        classes: normalised embeddings of the texts of the classifier's K classes, `[K, D]`.
        labels: normalised embeddings of the texts of M labels, `[M, D]`.
        columns: number of each of the M labels among the C trained labels, or -1 for an added label, int `[M]`.
    """

    def __init__(self, head: TextHead, classifier: tuple[Array, Array], classes: Array, labels: Array, columns: Array):
        trained = columns >= 0
        own = head.embeddings[...][columns]
        self.head = head
        self.embeddings = Frozen(jnp.where(trained[:, None], own, labels))
        self.classes = Frozen(jnp.asarray(classes))
        self.kernel, self.bias = map(Frozen, map(jnp.asarray, classifier))
        references = head.references[...]
        references = references[is_filled(references)]
        bilinear = head.score(references, self.embeddings[...])
        means, deviations = zip(
            (bilinear.mean(axis=0), bilinear.std(axis=0)),
            label_statistics(self._probabilities(references), self.classes[...], self.embeddings[...]),
            strict=True,
        )
        gains = [_SLOPE / jnp.maximum(deviation, _LEAST_DEVIATION) for deviation in deviations]
        offset = _OFFSET - sum(gain * mean for gain, mean in zip(gains, means, strict=True))
        self.bilinear_gain = Frozen(jnp.where(trained, 1, gains[0]))
        self.conse_gain = Frozen(jnp.where(trained, 0, gains[1]))
        self.offset = Frozen(jnp.where(trained, 0, offset))

    def __call__(self, features: Array, *, train: bool, key: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Scores every label; see `AttentionPooling.__call__`. The returned dict is empty. There is no training."""
        pooled, labels = pool(features), self.embeddings[...]
        bilinear = self.head.score(pooled, labels)
        conse = jnp.log(conse_scores(self._probabilities(pooled), self.classes[...], labels))
        return self.bilinear_gain * bilinear + self.conse_gain * conse + self.offset, {}

    def _probabilities(self, pooled: Array) -> Array:
        return class_probabilities(pooled @ self.kernel[...] + self.bias[...])


def pool(features: Array) -> Array:
    """Averages feature maps `[B, h, w, F]` over the cells, float32 `[B, F]`."""
    return features.mean(axis=(1, 2), dtype=jnp.float32)


def is_filled(references: Array) -> Array:
    """Returns which rows are not zeros, bool `[R]`."""
    return (references != 0).any(axis=1)
