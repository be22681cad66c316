"""A data set without files: generated pictures of coloured shapes, with labels and captions."""

from aia_jax.data.scenes.dataset import LABELS, Scene, draw

__all__ = ["LABELS", "Scene", "draw"]
