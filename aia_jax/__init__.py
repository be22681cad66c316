"""Automatic image annotation in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aia_jax.utils.errors import InputError
from aia_jax.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from ml_collections import ConfigDict

    from aia_jax.inference.annotator import PhotoAnnotator

__all__ = ["InputError", "__version__", "load"]


def load(
    source: str | Path,
    config: ConfigDict | str | Path | None = None,
    *,
    labels: str | Path | None = None,
    threshold: float | str | Path | None = None,
    top: int | None = None,
    batch_size: int = 32,
) -> PhotoAnnotator:
    """A trained annotator.

        annotator = aia_jax.load("runs/demo")
        found = annotator(["a.jpg", "b.jpg"])
        found.labels[0]  # (("red circle", 0.98), ("night", 0.61))
        found.scores.shape, found.attention.shape  # (2, 22), (2, 22, 6, 6)

    Args:
        source: folder of an annotation run, whose best epoch counts; with `config` also a PyTorch or safetensors file.
        config: of the file: a config, or the path of one.
        labels: of the file: its labels, one a line or JSON with `labels`; None: those of the config's data.
        threshold: a label is chosen where its score is above it: a number, or a file of one for each label; None:
            `thresholds.json` of the run, or else `config.eval.threshold`.
        top: how many labels an image gets at most; None: all that are above.
        batch_size: images computed at once, rounded up to a multiple of the devices; fewer take as long as this many,
            so that 1 suits images which come one at a time.

    Raises:
        InputError: one of them cannot be used.
    """
    from aia_jax.inference.load import load_annotator  # what is heavy to import

    return load_annotator(source, config, labels=labels, threshold=threshold, top=top, batch_size=batch_size)
