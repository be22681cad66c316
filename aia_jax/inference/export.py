"""Exports a trained annotator to StableHLO and ONNX files. Compares the outputs of each file with the model."""

import hashlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import numpy as np

from aia_jax.data import scenes
from aia_jax.data.feature_cache import weights_digest
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.training.runs import package_versions
from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import import_with_extra
from aia_jax.version import __version__

NUM_IMAGES = 4  # batch size of the comparison if a file accepts any batch size
# Largest allowed difference between a file and the model. In bfloat16 the compiler decides when to round.
_TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}


class Exporter:
    """Converts an annotator to the contents of StableHLO and ONNX files.

    Args:
        annotator: the model, loaded with `fold=False`. Its batch size must be at least `batch`, or `NUM_IMAGES`.
        batch: the only batch size that the exported files accept; None: they accept any batch size.
        explain: whether the exported files also return attention maps.

    Attributes:
        num_bytes: approximate size of each exported file in bytes.

    Raises:
        InputError: `explain` is set, but the head has no attention.
    """

    def __init__(self, annotator: TrainedAnnotator, *, batch: int | None, explain: bool):
        head = annotator.config.model.head
        if explain and head != "attention":
            raise InputError(f"--attention: the head of this model, config.model.head={head!r}, has no attention")
        self._annotator, self._batch, self._explain = annotator, batch, explain
        self._arrays = annotator.arrays()
        self.num_bytes = sum(array.nbytes for array in self._arrays.values())

    def describe(self, thresholds: np.ndarray) -> dict[str, Any]:
        """Returns the facts in `model.json` about the model. `thresholds` `[C]` has a threshold for each label."""
        annotator, size, model = self._annotator, self._annotator.image_size, self._annotator.config.model
        mean, std = annotator.channel_stats
        batch = self._batch or "any"
        images = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
        outputs = jax.eval_shape(annotator.function(explain=self._explain), images)
        return {
            "labels": annotator.labels,
            "thresholds": thresholds.tolist(),
            "rule": "a label is selected if its score is above its threshold",
            "image_size": size,
            "preparation": [
                "decode; if there are several frames, take the first",
                "convert to RGB as PIL.Image.convert does: drop alpha, repeat grey; first divide 16-bit grey by 256",
                f"resize to {size} x {size} pixels from any aspect ratio, as PIL.Image.resize with BILINEAR does, "
                "which antialiases",
                "then turn upright by EXIF's Orientation",
                "store as uint8 [row, column, (red, green, blue)]",
            ],
            "normalization": {"formula": "(x / 255 - mean) / std", "mean": mean, "std": std, "where": "in the files"},
            "inputs": [{"name": "image", "dtype": "uint8", "shape": [batch, size, size, 3]}],
            "outputs": [
                {"name": name, "dtype": str(outputs[name].dtype), "shape": [batch, *outputs[name].shape[1:]]}
                for name in sorted(outputs, reverse=True)  # scores, then attention
            ],
            "model": {"backbone": model.backbone, "head": model.head, "dtype": model.dtype},
            "weights_digest": weights_digest(self._arrays),
            "versions": {"aia_jax": __version__, **package_versions("torch", "timm", "onnxscript", "onnxruntime")},
        }

    def stablehlo(self, platforms: Sequence[str]) -> tuple[bytes, dict[str, Any]]:
        """Returns the content of a `jax.export` file for some of cpu, cuda, rocm and tpu, and facts about the file.

        This machine does not need devices of these platforms. If the file cannot run on this machine, the fact
        `max_difference` is None. Otherwise it is the result of `_compare`.
        """
        size = self._annotator.image_size
        batch = self._batch or jax.export.symbolic_shape("B")[0]
        images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
        function = jax.jit(self._annotator.function(explain=self._explain))
        option = "jax_hlo_source_file_canonicalization_regex"
        previous = getattr(jax.config, option)
        jax.config.update(option, ".*")  # leaves out the paths of source files on this machine
        try:
            content = bytes(jax.export.export(function, platforms=platforms)(images).serialize())
        finally:
            jax.config.update(option, previous)
        differences = (
            self._compare(load_stablehlo(content)) if jax.export.default_export_platform() in platforms else None
        )
        return content, {**_facts(content), "platforms": platforms, "max_difference": differences}

    def onnx(self) -> tuple[bytes, dict[str, Any]]:
        """Returns the content of an ONNX file, and facts about the file.

        Raises InputError if a package is not installed, if the file and the model have different outputs, or for the
        head "text".
        """
        if self._annotator.config.model.head == "text":
            raise InputError("ONNX files cannot hold config.model.head='text'; export with --format stablehlo")
        onnx_model, annotator = import_onnx(), self._annotator
        torch_model = onnx_model.build_torch_model(annotator.config, self._arrays)
        options = {"batch": self._batch, "explain": self._explain}
        try:
            content = onnx_model.to_onnx(torch_model, annotator.config, annotator.channel_stats, **options)
        except Exception as error:  # torch.onnx raises errors of many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"torch.onnx cannot convert the model: {reason:.300}") from error
        # ONNX multiplies matrices in full float32. JAX does this on CPUs by default, and elsewhere only with "highest".
        with jax.default_matmul_precision(None if jax.export.default_export_platform() == "cpu" else "highest"):
            differences = self._compare(onnx_model.load_onnx(content))
        return content, {**_facts(content), "max_difference": differences}

    def _compare(self, call: Callable[[np.ndarray], dict[str, Any]]) -> dict[str, float]:
        """Runs a file (`call`) and the model on the same images. Returns the largest difference of each output.

        Raises InputError if a difference is too large.
        """
        count = self._batch or NUM_IMAGES
        few = [scenes.draw(0, index, self._annotator.image_size).image for index in range(min(count, NUM_IMAGES))]
        images = np.stack([few[index % NUM_IMAGES] for index in range(count)])
        expected = jax.device_get(self._annotator.predict(images, explain=self._explain))
        found = call(images)
        names = sorted(expected, reverse=True)
        differences = {name: float(np.abs(expected[name][:count] - found[name]).max()) for name in names}
        tolerance = _TOLERANCES[self._annotator.config.model.dtype]
        wrong = [f"{name} by {value:.2g}" for name, value in differences.items() if not value <= tolerance]
        if wrong:
            raise InputError(
                f"the file differs from the model in {' and '.join(wrong)}, more than {tolerance:g}; the weights are "
                "damaged or diverged, or the converter does not support the model"
            )
        return differences


def load_stablehlo(content: bytes) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Returns the function in a `jax.export` file. JAX compiles this function once for each batch size."""
    return jax.jit(jax.export.deserialize(bytearray(content)).call)


def import_onnx() -> types.ModuleType:
    """Imports `aia_jax.inference.onnx_model`. Raises InputError if a package that it needs is not installed."""
    return import_with_extra("aia_jax.inference.onnx_model", "ONNX", "onnx")


def _facts(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
