"""Automatic image annotation in JAX."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from aia_jax.utils.errors import InputError
from aia_jax.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ml_collections import ConfigDict

    from aia_jax.inference.annotator import PhotoAnnotator
    from aia_jax.inference.indexed_photos import IndexedPhotos

if sys.version_info < (3, 11):  # noqa: UP036, a checkout: pip refuses to install it there
    _VERSION = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"error: this is Python {_VERSION}, and aia_jax needs 3.11 or newer: python3.13 -m venv venv")

__all__ = ["InputError", "__version__", "index", "load"]


def load(
    source: str | Path = "open",
    config: ConfigDict | str | Path | None = None,
    *,
    labels: str | Path | Sequence[str] | None = None,
    threshold: float | str | Path | None = None,
    top: int | None = None,
    batch_size: int = 32,
) -> PhotoAnnotator:
    """Loads a trained annotator.

        annotator = aia_jax.load("runs/demo")
        found = annotator(["a.jpg", "b.jpg"])
        found.labels[0]  # (("red circle", 0.98), ("night", 0.61))
        found.scores.shape, found.attention.shape  # (2, 22), (2, 22, 6, 6)

    Args:
        source: A model folder, the name of a shipped model (`aia models` lists them), or the folder of an annotation
            run, from which the best epoch is loaded. With `config`, `source` can be a PyTorch or safetensors file.
        config: The config for a PyTorch or safetensors file, or its path or packaged name. A folder has its own config.
        labels: A list, or the path of a file with one label per line, or of JSON with the key `labels`. For the model
            `open` and other dual encoders: any words, `name` or `name: definition`; the default is an everyday
            vocabulary. For an annotator with the head "text": the labels to score instead of the trained ones. For a
            PyTorch or safetensors file: its labels; the default is the labels of the data set in `config`.
        threshold: A label is selected if its score is above this number. A path to a thresholds file sets one threshold
            per label. The default is `thresholds.json` in the folder, or else `config.eval.threshold`.
        top: The maximum number of labels for an image. The default is no maximum.
        batch_size: The number of images per batch, rounded up to a multiple of the number of devices. Fewer images take
            as long as a full batch, so 1 is best for images that arrive one at a time.

    Returns:
        A callable that annotates images; see `PhotoAnnotator`.

    Raises:
        InputError: An argument cannot be used. The message says why, and how to correct the argument.
    """
    from aia_jax.inference.annotator import (
        PhotoAnnotator,  # imports JAX, which `import aia_jax` should not
        check_threshold,
        load_trained_annotator,
        read_thresholds,
    )
    from aia_jax.utils.model_folders import find_model

    for name, number in (("top", top), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, not {number}")
    source = source if config else find_model(source)
    threshold = check_threshold(threshold, source)
    annotator = load_trained_annotator(source, config, labels=labels, batch_size=batch_size)
    return PhotoAnnotator(annotator, read_thresholds(threshold, annotator), top)


def index(folder: str | Path, model: str | Path = "open") -> IndexedPhotos:
    """Indexes the photos of a folder, to search them by words or sentences.

        photos = aia_jax.index("photos")
        photos.search("a dog in the snow")  # [(PosixPath("photos/winter/3.jpg"), 0.41), ...]
        photos.problems  # {"empty.jpg": "the file is empty"}: the photos that cannot be read

    The index is in the cache. Later calls compute only new and changed photos.

    Args:
        folder: The folder of the photos. Subfolders are searched too.
        model: A model folder, the name of a shipped model, or the folder of a run: of a dual encoder or of AMC.

    Raises:
        InputError: An argument cannot be used. The message says why, and how to correct the argument.
    """
    from aia_jax.inference.indexed_photos import index_photos  # imports JAX, which `import aia_jax` should not

    return index_photos(folder, model)
