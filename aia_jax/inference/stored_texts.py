"""Embeddings of ImageNet's classes and of the everyday vocabulary, which are computed once and then stored.

With them a model labels photos with the everyday vocabulary without a text encoder, and starts sooner.
`data/words/embeddings.safetensors` has the text encoder's embeddings. A model folder has the dual encoder's vectors.
"""

import functools
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from aia_jax.data.words.imagenet import imagenet_classes
from aia_jax.data.words.label_texts import LabelTexts, everyday_labels
from aia_jax.inference.trained_dual_encoder import TrainedDualEncoder
from aia_jax.tasks.text_encoder import TextEncoder
from aia_jax.utils.files import write_bytes

_VECTORS = "open_vocabulary.everyday_vectors"  # path of the vectors `[C, D]` in a model folder
_DIGEST = "everyday"  # the fact in a model folder that identifies the labels of these vectors


def class_embeddings(encoder: TrainedDualEncoder) -> np.ndarray:
    """Returns the embeddings of the texts of ImageNet's classes, float32 `[1000, 384]`.

    Raises InputError if they are not stored, and the text encoder is not installed.
    """
    return _embeddings(encoder, _class_texts())


def label_embeddings(encoder: TrainedDualEncoder, labels: LabelTexts) -> tuple[np.ndarray, np.ndarray]:
    """Returns the embeddings of C labels, float32 `[C, 384]`, and their vectors in the dual encoder, `[C, D]`.

    Raises InputError if a label has no known word, or if the text encoder is needed and not installed.
    """
    vectors = encoder.others.get(_VECTORS)
    if vectors is None or encoder.facts.get(_DIGEST) != _digest(labels.names):
        encoder.texts.tokenizer.check_words(labels.names, "label")
        vectors = encoder.encode_texts([f"a {name}" for name in labels.names])
    return _embeddings(encoder, labels.texts), vectors


def everyday_vectors(encoder: TrainedDualEncoder) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns an array and a fact for a model folder: the vectors of the everyday vocabulary, and their digest."""
    labels = everyday_labels()
    return {_VECTORS: label_embeddings(encoder, labels)[1]}, {_DIGEST: _digest(labels.names)}


def write_embeddings(path: Path) -> None:
    """Writes `embeddings.safetensors` with the installed text encoder."""
    encoder = TextEncoder()
    arrays = {
        f"{encoder.digest} {_digest(texts)}": encoder.encode(texts)["sentence"].astype(np.float16)
        for texts in (_class_texts(), everyday_labels().texts)
    }
    write_bytes(path, safetensors.numpy.save(arrays))


def _embeddings(encoder: TrainedDualEncoder, texts: Sequence[str]) -> np.ndarray:
    stored = _read_embeddings().get(f"{encoder.facts['text_encoder']} {_digest(texts)}")
    return encoder.texts.encode(texts)["sentence"] if stored is None else stored.astype(np.float32)


@functools.cache
def _read_embeddings() -> dict[str, np.ndarray]:
    """Returns the stored arrays. The name of each has the digests of the text encoder and of the texts."""
    return safetensors.numpy.load((resources.files("aia_jax.data.words") / "embeddings.safetensors").read_bytes())


def _class_texts() -> list[str]:
    return [entry.text for entry in imagenet_classes()]


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode(errors="backslashreplace")).hexdigest()[:12]
