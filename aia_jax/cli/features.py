"""Compute grid features of your own photos, as image-text retrieval reads them.

    aia features --config corel5k_lite --weights efficientnet_lite2 --images photos --output train_ims.npy
    aia features --config corel5k_lite --weights efficientnet_lite2 --images photos --output train_ims.npy --ray

FILE.npy holds [N, cells, channels]. FILE.json beside it names the photos, the backbone and the weights.
"""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from typing import TYPE_CHECKING

from aia_jax.cli.devices import check_devices
from aia_jax.cli.flags import Parser, add_config_argument, local, positive, word_or_url
from aia_jax.cli.outputs import check_output_folder, staged_output
from aia_jax.cli.ray_flags import add_ray_arguments, check_ray_flags, rows_on_ray
from aia_jax.data.photo_folder import photo_names, read_photos
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from aia_jax.inference.grid_features import GridFeatureExtractor


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia features`."""
    add_config_argument(parser, "annotation config that gives the backbone, image size and channel statistics")
    weights = "folder or URL of a run, PyTorch file, or package such as efficientnet_lite2"
    parser.add_argument("--weights", required=True, type=word_or_url, help=weights)
    parser.add_argument("--images", required=True, type=local, metavar="FOLDER", help="photos, in subfolders too")
    parser.add_argument("--output", required=True, type=local, metavar="FILE.npy", help="FILE.json is put beside it")
    names = "names of photos in FOLDER, one per line, in the order of the captions; default: all, sorted by name"
    parser.add_argument("--list", type=local, metavar="FILE.txt", help=names)
    parser.add_argument("--batch_size", type=positive, metavar="N", help="the default is config.eval.batch_size")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="dtype of the file")
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    add_ray_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes the features of N photos, `[N, h * w, F]`, and a JSON file that names the photos, backbone and weights.

    Raises InputError if a file or folder that a flag names, or a photo, cannot be used.
    """
    import numpy as np

    from aia_jax.data.feature_cache import write_grid_features
    from aia_jax.data.photo_rows import computed_rows
    from aia_jax.data.photo_sources import PhotoPlace, PhotoSource

    check_ray_flags(arguments, ())
    output, config, dtype = arguments.output, arguments.config, arguments.dtype
    if output.suffix != ".npy":
        raise InputError(f"--output {output} must end in .npy")
    facts_file = output.with_suffix(".json").name
    check_output_folder(output.parent, (output.name, facts_file), force=arguments.force)
    on_ray = arguments.ray is not None
    if not on_ray:
        check_devices()
    names = photo_names(arguments.images, arguments.list)
    folder = arguments.images.resolve()
    source = PhotoSource([PhotoPlace(name, str(folder / name)) for name in names], str(folder))
    load = partial(_load, config, arguments.weights, arguments.batch_size or config.eval.batch_size)
    with contextlib.ExitStack() as stack:
        options = {"exact": True, "in_order": True}
        compute = stack.enter_context(rows_on_ray(arguments, source, **options)) if on_ray else None
        extractor = load()
        height, width, channels = extractor.grid
        num_bytes = len(names) * height * width * channels * np.dtype(dtype).itemsize
        staged = stack.enter_context(staged_output(output.parent, num_bytes))
        if compute:
            rows = compute(source.places, load, extractor)
        else:
            paths = [place.file for place in source.places]
            photos = read_photos(paths, extractor.image_size, num_workers=config.data.num_workers)
            rows = computed_rows(names, photos, extractor.compute, extractor.batch_size)
        stack.enter_context(contextlib.closing(rows))
        write_grid_features(staged / output.name, names, rows, (height * width, channels), dtype)
        facts = {**extractor.facts, "dtype": dtype, "num_images": len(names), "images": names}
        write_json(staged / facts_file, facts)
    print(f"{output}: [{len(names)}, {height * width}, {channels}] {dtype}, {num_bytes / 1e6:,.1f} MB")
    print(extractor.facts["statement"])


def _load(config: ConfigDict, weights: str, batch_size: int) -> GridFeatureExtractor:
    """Loads the backbone, in this process or in an actor of Ray."""
    from aia_jax.inference.grid_features import GridFeatureExtractor

    check_devices()
    return GridFeatureExtractor(config, weights, batch_size)
