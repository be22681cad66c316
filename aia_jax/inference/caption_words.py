"""Classifies photos by the frequent words of captions: a linear classifier on the image vectors of a dual encoder."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

_WEIGHTS, _BIAS = "open_vocabulary.word_weights", "open_vocabulary.word_bias"  # paths in a model folder
_LEAST_PHOTOS = 20  # training photos whose captions mention a word, so that it gets a classifier
_PENALTY = 0.01  # factor of the squared weights of standardised vectors, beside the mean loss; chosen on Flickr8k dev
_MOST_FREQUENT = 0.1  # see fit_caption_words
_ABSENT = -100.0  # logit of a label that no word matches
# Labels that mean exactly a word. `data.words.mentions` also has kinds of it, such as "man".
_SYNONYMS = {"people": "person", "human": "person", "children": "child", "kid": "child", "bike": "bicycle"}


class CaptionWords(NamedTuple):
    """A linear classifier of W words: the probabilities are sigmoid(vectors @ weights + bias).

    Attributes:
        names: W words of the everyday vocabulary.
        weights: float `[D, W]`.
        bias: float `[W]`.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    bias: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays for a model folder, `{path: array}`."""
        return {_WEIGHTS: self.weights, _BIAS: self.bias}

    @classmethod
    def load(cls, arrays: dict[str, Any], names: Sequence[str], size: int) -> "CaptionWords":
        """Returns the classifier of the words `names` on vectors of `size` numbers, from the result of `arrays`.

        Raises KeyError if an array is missing, or ValueError if the names do not fit the arrays.
        """
        weights, bias = arrays[_WEIGHTS], arrays[_BIAS]
        known = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        if not known or weights.shape != (size, len(names)) or bias.shape != (len(names),):
            shapes = f"{list(weights.shape)} and {list(bias.shape)}"
            raise ValueError(f"`words` must be a list of W words for arrays [{size}, W] and [W], found {shapes}")
        return cls(tuple(names), weights, bias)

    def of_labels(self, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the weights `[D, C]` and the bias `[C]` of C labels.

        A label matches a word, its plural or its synonym, in any letter case. The bias of other labels is -100.
        """
        columns = {name: column for column, name in enumerate(self.names)}
        columns = {synonym: columns[name] for synonym, name in _SYNONYMS.items() if name in columns} | columns
        columns = {plural: column for name, column in columns.items() for plural in _plurals(name)} | columns
        weights = np.zeros((len(self.weights), len(labels)), np.float32)
        bias = np.full(len(labels), _ABSENT, np.float32)
        for label, name in enumerate(labels):
            if (column := columns.get(name.lower())) is not None:
                weights[:, label], bias[label] = self.weights[:, column], self.bias[column]
        return weights, bias


def _plurals(name: str) -> tuple[str, ...]:
    return f"{name}s", f"{name}es", re.sub("y$", "ies", name)


def fit_caption_words(vectors: np.ndarray, mentioned: np.ndarray, names: Sequence[str]) -> CaptionWords:
    """Fits a logistic regression for each word in the captions of at least 20 photos.

    A word's fraction of the training photos counts as at most 10 %: three of four photos of Flickr8k show a person,
    but other photos do not. This lowers the bias of frequent words.

    Args:
        vectors: image vectors of N training photos, `[N, D]`.
        mentioned: whether the captions of a photo mention a word, `[N, C]`.
        names: the C words.
    """
    from sklearn.linear_model import LogisticRegression

    counts = mentioned.sum(axis=0)
    chosen = np.flatnonzero((counts >= _LEAST_PHOTOS) & (counts < len(mentioned)))
    mean, deviation = vectors.mean(axis=0), vectors.std(axis=0) + 1e-6
    inputs = (vectors - mean) / deviation
    weights, bias = np.zeros((vectors.shape[1], len(chosen))), np.zeros(len(chosen))
    for row, column in enumerate(tqdm(chosen, "fit words of captions", leave=False)):
        regression = LogisticRegression(C=1 / (2 * _PENALTY * len(inputs)), max_iter=200)
        fitted = regression.fit(inputs, mentioned[:, column])
        weights[:, row], bias[row] = fitted.coef_[0] / deviation, fitted.intercept_[0]
    bias -= mean @ weights + np.maximum(0, _log_odds(counts[chosen] / len(mentioned)) - _log_odds(_MOST_FREQUENT))
    return CaptionWords(tuple(names[column] for column in chosen), weights.astype(np.float32), bias.astype(np.float32))


def _log_odds(probability: Any) -> Any:
    return np.log(probability) - np.log1p(-probability)
