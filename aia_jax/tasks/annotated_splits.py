"""Splits of annotated data sets, with a validation part of the training split."""

import functools

from ml_collections import ConfigDict

from aia_jax.data.annotation.annotations import CUSTOM
from aia_jax.data.annotation.datasets import Split, load_split, split_validation
from aia_jax.utils.errors import InputError


class AnnotatedSplits:
    """Loads the splits of an annotated data set.

    If `config.eval.split` is "validation", "validation" is a random part of the training split, and "train" is the
    rest. Otherwise there is no validation part.

    Args:
        config: config with `data` and `eval`.
        image_size: side of the images in pixels.
        seed: seed of the validation part.
    """

    def __init__(self, config: ConfigDict, image_size: int, seed: int):
        self._config, self._image_size, self._seed = config, image_size, seed

    def load(self, name: str) -> Split:
        """Loads "train", "validation" or "test".

        Raises:
            InputError: there is no validation part, or the data cannot be read.
        """
        if name == "test":
            return load_split(self._config.data, "test", self._image_size)
        if self._config.eval.split == "validation":
            return self._parts[("train", "validation").index(name)]
        if name == "validation":
            raise InputError("this config has no validation part: config.eval.split is 'test'")
        return self.whole_train

    @functools.cached_property
    def whole_train(self) -> Split:
        """The training split with its validation part."""
        return load_split(self._config.data, "train", self._image_size)

    @functools.cached_property
    def _parts(self) -> tuple[Split, Split]:
        data = self._config.data
        return split_validation(self.whole_train, data.validation_fraction, self._seed, stratified=data.name == CUSTOM)
