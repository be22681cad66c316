"""Word vectors from text files of GloVe and word2vec."""

import math
from pathlib import Path

import numpy as np

from aia_jax.data.vocabulary import Vocabulary
from aia_jax.utils.errors import InputError


def read_vectors(path: str | Path, vocabulary: Vocabulary, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the vectors of the words in a vocabulary. Memory does not grow with the file.

    Args:
        path: UTF-8 text with a word and its `size` numbers per line. The header of word2vec, two numbers, is skipped.

    Returns:
        ids: int64 `[K]`.
        vectors: float32 `[K, size]`, scaled together to a mean square of 1, as random initial vectors have.

    Raises:
        InputError: the file is absent or malformed, its vectors have another size, or it has none of the words.
    """
    found: dict[int, np.ndarray] = {}
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                word, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue
                if len(values) != size:
                    raise InputError(
                        f"{path}:{number}: a word and {len(values)} numbers, but config.model.word_size is {size}"
                    )
                if word in vocabulary:
                    found[vocabulary.ids[word]] = _numbers(values, f"{path}:{number}")
    except OSError as error:
        raise InputError(f"config.model.word_vectors: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if not found:
        raise InputError(f"{path} has none of the {len(vocabulary):,} words of the queries")
    vectors = np.stack(list(found.values()))
    scale = math.sqrt(float(np.square(vectors, dtype=np.float64).mean()))
    return np.array(list(found)), vectors / max(scale, np.finfo(np.float32).tiny)


def _numbers(values: list[str], where: str) -> np.ndarray:
    try:
        vector = np.array(values, np.float32)
    except ValueError:
        raise InputError(f"{where}: not all of {' '.join(values[:4])} ... are numbers") from None
    if not np.isfinite(vector).all():
        raise InputError(f"{where}: a number is not finite")
    return vector
