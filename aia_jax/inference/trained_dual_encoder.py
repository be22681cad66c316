"""Runs a trained dual encoder: encodes photos and texts as vectors, and classifies photos by ImageNet's classes."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from aia_jax.data.feature_cache import pad_batch, weights_digest
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.models.backbones import fold_norms
from aia_jax.models.dual_encoder import DualEncoder, build_dual_encoder
from aia_jax.tasks.dual_encoder import DualEncoderTask
from aia_jax.tasks.text_encoder import TextEncoder
from aia_jax.training import sharding
from aia_jax.training.model_arrays import (
    abstract_weights,
    flat_arrays,
    merge_model,
    replace_arrays,
    select_weights,
    split_model,
)
from aia_jax.training.prediction import fetch_outputs
from aia_jax.training.runs import config_errors_as_input_errors, read_run_config, run_arrays
from aia_jax.training.step import make_predict_step
from aia_jax.utils.config_fields import check_fields
from aia_jax.utils.errors import InputError
from aia_jax.utils.model_folders import model_folder, read_about
from aia_jax.weights.model_folder import read_model_folder


def is_dual_encoder(folder: Path) -> bool:
    """Returns whether a model folder or a run has a dual encoder. Raises InputError if `folder` has no config."""
    return _read_config(folder).get("model", {}).get("name") == "dual_encoder"


def _read_config(folder: Path) -> dict[str, Any]:
    return read_about(folder)["config"] if model_folder(folder) else read_run_config(folder)


class TrainedDualEncoder:
    """Encodes photos and texts on all devices.

    Args:
        config: config of a run of a dual encoder.
        facts: `DualEncoderTask.describe` of the run.
        arrays: all arrays of the model, `{path: array}`.
        batch_size: number of images in a batch. Rounded up to a multiple of the number of devices.

    Attributes:
        image_size: side S of the images in pixels.
        facts: the argument `facts`.
        others: the given arrays that are no arrays of the dual encoder, such as the reference of `OpenVocabulary`.
        has_classes: whether the model has an ImageNet classifier.
        digest: text that identifies the weights and settings.

    Raises:
        InputError: a field of `config` has an unknown value.
    """

    def __init__(self, config: ConfigDict, facts: dict[str, Any], arrays: dict[str, Any], batch_size: int):
        self.config, self.facts, self.image_size = config, facts, config.data.image_size
        self._task = DualEncoderTask(config)
        self._mesh = sharding.data_mesh()
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        graphdef, shapes = abstract_weights(
            lambda rngs: build_dual_encoder(config.model, facts["pieces"], rngs=rngs), self._mesh
        )
        own = flat_arrays(select_weights(shapes, "raw"))
        self.others = {path: value for path, value in arrays.items() if path not in own}
        self._arrays = {path: arrays[path] for path in own}
        if wrong := [path for path, leaf in own.items() if arrays[path].shape != leaf.shape]:
            raise InputError(f"the weights do not fit the config: {wrong[0]} has the shape {arrays[wrong[0]].shape}")
        weights = replace_arrays(select_weights(shapes, "raw"), arrays)
        self._frozen = weights["constants"].get("backbone")
        weights = sharding.put_replicated(weights, self._mesh)

        def folded(weights: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            model = merge_model(graphdef, weights)
            fold_norms(model)
            return split_model(model)

        graphdef, self._weights = jax.jit(folded, out_shardings=sharding.replicated(self._mesh))(weights)
        self.has_classes = "classes" in config.model.image_features
        self._encode_images = make_predict_step(graphdef, self._images, self._mesh)
        self._encode_texts = jax.jit(
            lambda weights, rows: merge_model(graphdef, weights).encode_texts(rows, train=False)
        )
        model = config.model
        settings = f"{model.backbone} {self.image_size} px {model.dtype} {model.native_padding}"
        self.digest = f"{settings} {weights_digest(self._arrays)} {facts['text_encoder']}"

    @classmethod
    def load(cls, folder: Path, batch_size: int) -> "TrainedDualEncoder":
        """Loads a model folder, or the best epoch of a run. Raises InputError if `folder` has no dual encoder."""
        if not is_dual_encoder(folder):
            raise InputError(f"{folder} holds no dual encoder; name a model or a run of the config dual_encoder")
        config = ConfigDict(_read_config(folder))
        if model_folder(folder):
            found = read_model_folder(folder)
            arrays, facts = found.arrays, found.facts
        else:
            arrays, facts = run_arrays(folder)
        with config_errors_as_input_errors(folder):
            check_fields(config)
            return cls(config, facts, arrays, batch_size)

    @functools.cached_property
    def texts(self) -> TextEncoder:
        """The text encoder. Raises InputError if it is not installed, or if it is another one than in training."""
        texts = self._task.texts
        if self.facts["text_encoder"] != texts.digest:
            raise InputError(
                "the installed text encoder has other weights than the one that the model was trained with"
            )
        return texts

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays of the model, `{path: array}`, as they were given."""
        return self._arrays

    def encode_images(self, images: np.ndarray) -> dict[str, jax.Array]:
        """Starts the computation of a batch on the devices, and does not wait for the results.

        Args:
            images: b images, uint8 `[b, S, S, 3]`. b is at most `batch_size`.

        Returns:
            `vectors` float32 `[batch_size, D]` and, with `has_classes`, `log_classes` float32 `[batch_size, 1000]`:
            logarithms of probabilities. The rows after the first b are padding.
        """
        return self._encode({"image": images})

    def encode_split(self, images: MappedRows) -> dict[str, np.ndarray]:
        """Returns the outputs of `encode_images` for N images in a file.

        If the backbone was frozen in training, its cached feature maps are used.
        """
        name = "image" if self._frozen is None else "maps"
        rows = images if self._frozen is None else self._task.frozen_maps(self._frozen, images)

        def dispatched() -> Iterator[tuple[int, dict[str, jax.Array]]]:
            for start in tqdm(range(0, len(rows), self.batch_size), "encode images", leave=False):
                part = rows[start : start + self.batch_size]
                yield len(part), self._encode({name: part})

        found = [
            {name: rows[:count] for name, rows in outputs.items()} for count, outputs in fetch_outputs(dispatched())
        ]
        return {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}

    def encode_texts(self, texts: Sequence[str], embedded: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """Returns the vectors of N texts, float32 `[N, D]`. `embedded` is `texts.encode(texts)`, if it is known."""
        rows = self._task.text_arrays(texts, embedded)
        padded = -(-len(texts) // 64) * 64 if len(texts) > 1 else 1  # few shapes, so that JAX compiles few programs
        if "pieces" in rows:
            rows["pieces"] = np.pad(rows["pieces"], [(0, 0), (0, -rows["pieces"].shape[1] % 16)])
        rows = {name: pad_batch(values, padded) for name, values in rows.items()}
        return np.asarray(self._encode_texts(self._weights, rows))[: len(texts)]

    def _encode(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        padded = {name: pad_batch(rows, self.batch_size) for name, rows in batch.items()}
        return self._encode_images(self._weights, sharding.put_batch(padded, self._mesh))

    def _images(self, model: DualEncoder, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        maps = batch.get("maps")
        if maps is None:
            maps, _ = model.backbone(self._task.normalize(batch["image"]), train=False)
        vectors = model.encode_pooled(model.pool(maps), maps, train=False)
        classes = {"log_classes": model.log_classes(maps.astype(jnp.float32))} if self.has_classes else {}
        return {"vectors": vectors, **classes}
