"""Grid features of your own photos, as image-text retrieval takes them."""

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import positive
from aia_jax.data.cache import check_room, os_errors_as_input_errors
from aia_jax.data.feature_cache import weights_digest
from aia_jax.data.photo_folder import photo_names, read_photos
from aia_jax.data.retrieval.grid_features import write_grid_features
from aia_jax.models.annotator import build_annotator
from aia_jax.models.backbones import build_backbone
from aia_jax.tasks import AnnotationTask
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, replace_arrays, select_weights
from aia_jax.training.step import make_predict_step
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from aia_jax.weights.load import load_arrays, model_shapes

DTYPES = ("float32", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `aia features`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="CONFIG",
        help="annotation config: whose backbone, image size and channel statistics; --config.field=value overrides",
    )
    parser.add_argument(
        "--weights", required=True, help="folder of a run, PyTorch file, or a package's name such as efficientnet_lite2"
    )
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="photos, searched recursively")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.npy", help="FILE.json is written beside it")
    parser.add_argument(
        "--list",
        type=Path,
        metavar="FILE.txt",
        help="names of photos in FOLDER, one a line, in the order of the captions; the default is by name",
    )
    parser.add_argument("--batch_size", type=positive, metavar="N", help="the default is config.eval.batch_size")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the file")
    parser.add_argument("--force", action="store_true", help="replace an output that is there")


def run(arguments: argparse.Namespace) -> None:
    """Writes the features `[N, h * w, F]` and, beside them, what they are.

    Raises:
        InputError: photos, list, weights, config or output that cannot be used.
    """
    output: Path = arguments.output
    _check_output(output, arguments.force)
    names = photo_names(arguments.images, arguments.list)
    config = arguments.config
    extractor = Extractor(config, arguments.weights, arguments.batch_size or config.eval.batch_size)
    facts = {**extractor.facts, "dtype": arguments.dtype, "num_images": len(names), "images": names}
    num_bytes = len(names) * int(np.prod(extractor.grid)) * np.dtype(arguments.dtype).itemsize
    with exit_on_sigterm(), os_errors_as_input_errors(output.parent, num_bytes, "--output names another place"):
        output.parent.mkdir(parents=True, exist_ok=True)
        check_room(output.parent, num_bytes)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as directory:
            whole = Path(directory) / output.name
            paths = [arguments.images / name for name in names]
            photos = read_photos(paths, config.data.image_size, num_workers=config.data.num_workers)
            with contextlib.closing(photos):
                write_grid_features(
                    whole,
                    names,
                    photos,
                    extractor,
                    grid=extractor.grid,
                    dtype=arguments.dtype,
                    batch_size=extractor.batch_size,
                )
            write_json(whole.with_suffix(".json"), facts)
            for suffix in (".json", ".npy"):
                whole.with_suffix(suffix).replace(output.with_suffix(suffix))
    height, width, channels = extractor.grid
    print(f"{output}: [{len(names)}, {height * width}, {channels}] {arguments.dtype}, {num_bytes / 1e6:,.1f} MB")
    print(facts["statement"])


class Extractor:
    """The backbone of an annotation config: uint8 `[batch_size, S, S, 3]` to float32 `[batch_size, h, w, F]`.

    Args:
        config: of an annotation task.
        weights: see `weights.read_arrays`.
        batch_size: rounded up to a multiple of the devices.

    Attributes:
        grid: h, w, F.
        facts: what the maps depend on.

    Raises:
        InputError: a config of another task, or weights that do not fit it.
    """

    def __init__(self, config: ConfigDict, weights: str, batch_size: int):
        if config.get("task") != "annotation":
            raise InputError(f"config.task={config.get('task')!r}: features are those of an annotation config")
        task = AnnotationTask(config)
        shapes = model_shapes(lambda rngs: build_annotator(config.model, 1, rngs=rngs), backbone_only=True)
        arrays = load_arrays(weights, config, shapes, {})
        self._mesh = sharding.data_mesh()
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        graphdef, abstract = abstract_weights(lambda rngs: build_backbone(config.model, rngs=rngs), self._mesh)
        own = {path.removeprefix("backbone."): array for path, array in arrays.items()}
        self._weights = sharding.put_replicated(replace_arrays(select_weights(abstract, "raw"), own), self._mesh)
        self._step = make_predict_step(graphdef, task.extract, self._mesh)
        size = config.data.image_size
        images = jax.ShapeDtypeStruct((self.batch_size, size, size, 3), np.uint8)
        self.grid = jax.eval_shape(self._step, self._weights, {"image": images})["features"].shape[1:]
        self.facts = _facts(task, weights, weights_digest(arrays), self.grid)

    def __call__(self, images: np.ndarray) -> jax.Array:
        return self._step(self._weights, sharding.put_batch({"image": images}, self._mesh))["features"]


def _facts(task: AnnotationTask, weights: str, digest: str, grid: tuple[int, int, int]) -> dict[str, Any]:
    model, data = task.config.model, task.config.data
    height, width, channels = grid
    return {
        "statement": (
            f"These are grid features of {model.backbone}: the {height} x {width} cells of its last map at "
            f"{data.image_size} px. They are not the region features of the bottom-up-attention detector that the "
            "published numbers of SGRAF and VSL rest on; results with them do not compare with those numbers."
        ),
        "backbone": model.backbone,
        "image_size": data.image_size,
        "channel_stats": task.channel_stats,
        "native_padding": model.native_padding,
        "computed_in": model.dtype,
        "weights": {"source": weights, "digest": digest},
        "grid": [height, width],
        "num_features": channels,
    }


def _check_output(output: Path, force: bool) -> None:
    if output.suffix != ".npy":
        raise InputError(f"--output {output} must end in .npy")
    if output.parent.exists() and not output.parent.is_dir():
        raise InputError(f"--output {output}: {output.parent} is no folder")
    for path in (output, output.with_suffix(".json")):
        if path.is_dir():
            raise InputError(f"{path} is a folder; --output names a file")
        if path.exists() and not force:
            raise InputError(f"{path} is there already; --force replaces it, --output names another")
