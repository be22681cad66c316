"""ConSE: scores any labels on photos by a classifier and the similarity of texts. Nothing is trained.

The score of label c on an image is

    s_c = sum_k p_k exp(10 cos(t_k, u_c)),    p = softmax(logits / 2)

with the text embeddings t_k of the K classes and u_c of the C labels. The text of a class is its lemmas and definition.
The text of a label is its name, or "name: definition".

Source: "Zero-Shot Learning by Convex Combination of Semantic Embeddings" (Norouzi et al., ICLR 2014,
https://arxiv.org/abs/1312.5650). The paper averages the embeddings of the ten most probable classes and compares the
mean with the labels. Here the classes are compared first, and all classes count. Temperature and factor were chosen on
the training split of Corel-5k.
"""

import jax
import jax.numpy as jnp
from jax import Array

TEMPERATURE = 2.0
_FACTOR = 10.0
_AGREEMENT_FACTOR = 15.0
_LEAST_SIMILARITY = 0.52  # of a label and its most similar class; a label below it has no class that can agree


def class_probabilities(logits: Array, temperature: float = TEMPERATURE) -> Array:
    """Computes the probabilities of the K classes, `[N, K]`, from the logits of a classifier, `[N, K]`."""
    return jax.nn.softmax(logits / temperature, axis=-1)


def conse_scores(probabilities: Array, class_embeddings: Array, label_embeddings: Array) -> Array:
    """Computes the score of each label on each image, `[N, C]`, all above 0.

    The scores of a label compare images. To compare labels, first standardise the logarithm of the scores with
    `label_statistics`.

    Args:
        probabilities: result of `class_probabilities`, `[N, K]`.
        class_embeddings: normalised embeddings of the texts of the classes, `[K, D]`.
        label_embeddings: normalised embeddings of the texts of the labels, `[C, D]`.
    """
    return probabilities @ jnp.exp(_FACTOR * _similarities(class_embeddings, label_embeddings))


def label_statistics(probabilities: Array, class_embeddings: Array, label_embeddings: Array) -> tuple[Array, Array]:
    """Computes the mean and the standard deviation of each label's log score over M reference images, both `[C]`.

    Args:
        probabilities: `class_probabilities` of the reference images, `[M, K]`.
        class_embeddings: see `conse_scores`.
        label_embeddings: see `conse_scores`.
    """
    scores = jnp.log(conse_scores(probabilities, class_embeddings, label_embeddings))
    return scores.mean(axis=0), scores.std(axis=0)


def class_agreement(probabilities: Array, class_embeddings: Array, label_embeddings: Array) -> Array:
    """Computes how much of the classifier's probability lies on classes that a label describes, `[N, C]`, from 0 to 1.

    Agreement compares labels of one image and images alike, and needs no reference images:

        a_c = sum_k p_k min(1, v_kc / m_c),    v_kc = exp(15 cos(t_k, u_c)),    m_c = sum_k v_kc^2 / sum_k v_kc

    m_c is the typical v of the label's own classes: a label such as "dog" has many of them, and "espresso" only one.
    The agreement is 0 for a label that resembles no class.

    Args:
        probabilities: `class_probabilities` with temperature 1, `[N, K]`.
        class_embeddings: see `conse_scores`.
        label_embeddings: see `conse_scores`.
    """
    return probabilities @ class_values(class_embeddings, label_embeddings)


@jax.jit
def class_values(class_embeddings: Array, label_embeddings: Array) -> Array:
    """Computes the agreement of each class with each label, `[K, C]`: the factors of p_k in `class_agreement`."""
    similarities = _similarities(class_embeddings, label_embeddings)
    values = jnp.exp(_AGREEMENT_FACTOR * similarities)
    typical = jnp.square(values).sum(axis=0) / values.sum(axis=0)
    known = similarities.max(axis=0) >= _LEAST_SIMILARITY
    return jnp.where(known, jnp.minimum(1, values / typical), 0)


def _similarities(class_embeddings: Array, label_embeddings: Array) -> Array:
    """Computes the cosines `[K, C]`."""
    return jnp.matmul(class_embeddings, label_embeddings.T, precision="highest")
