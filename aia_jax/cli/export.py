"""Write an annotator as files that run without this project: StableHLO for JAX, ONNX for other runtimes."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from aia_jax.cli.devices import enable_compilation_cache
from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.cli.flags import positive
from aia_jax.cli.model_flags import add_model_arguments, check_model_arguments
from aia_jax.data.cache import check_room, os_errors_as_input_errors
from aia_jax.inference.export import NUM_IMAGES, Exporter, import_onnx
from aia_jax.inference.load import load_trained_annotator, read_thresholds
from aia_jax.inference.stablehlo import PLATFORMS
from aia_jax.models.backbones import DTYPES
from aia_jax.training.runs import read_run_config
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_bytes, write_json
from aia_jax.utils.messages import format_count, printable

_FILES = {"stablehlo": "model.stablehlo", "onnx": "model.onnx"}
_FACTS = "model.json"
EXAMPLE = """\
import json, sys
import jax, numpy as np
from jax import export
from PIL import Image, ImageOps

about = json.load(open("exported/model.json"))
model = jax.jit(export.deserialize(bytearray(open("exported/model.stablehlo", "rb").read())).call)
square = (about["image_size"],) * 2
photos = [Image.open(path).convert("RGB").resize(square, Image.Resampling.BILINEAR) for path in sys.argv[1:]]
scores = np.asarray(model(np.stack([ImageOps.exif_transpose(photo) for photo in photos]))["scores"])
for path, row in zip(sys.argv[1:], scores):
    print(path, [label for label, score, limit in zip(about["labels"], row, about["thresholds"]) if score > limit])
"""
_EPILOG = f"""\
DIR gets {", ".join(_FILES.values())} and {_FACTS}: labels, thresholds, how photos are prepared, what was measured.
Each file is tried on images beside the model and refused where they differ.

Photos through {_FILES["stablehlo"]}, with jax, flatbuffers, numpy and pillow alone:

{EXAMPLE}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `aia export`."""
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    add_model_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder that gets the files")
    parser.add_argument("--format", choices=(*_FILES, "both"), default="stablehlo", help="the default is stablehlo")
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="N|dynamic",
        help="images that a call takes; the default, dynamic, is any number",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation; the default is float32")
    parser.add_argument(
        "--platforms",
        type=_platforms,
        default=("cpu", "cuda", "tpu"),
        metavar="P,P",
        help=f"of {', '.join(PLATFORMS)}, those that StableHLO is to run on; the default is cpu,cuda,tpu",
    )
    parser.add_argument("--attention", action="store_true", help="give the attention maps of all labels too")
    parser.add_argument("--force", action="store_true", help="replace an exported model in --output")


def run(arguments: argparse.Namespace) -> None:
    """Writes the files that were asked for, and prints what they are.

    Raises:
        InputError: a model, thresholds or output that cannot be used, a package that is absent, or a file that does not
            give the model's scores.
    """
    _check(arguments)
    formats = tuple(_FILES) if arguments.format == "both" else (arguments.format,)
    if "onnx" in formats:
        import_onnx()  # told before anything is computed
    enable_compilation_cache()
    source, batch, output = arguments.workdir or arguments.weights, arguments.batch, arguments.output
    options = {"labels": arguments.labels, "batch_size": batch or NUM_IMAGES, "dtype": arguments.dtype}
    annotator = load_trained_annotator(source, arguments.config, **options, fold=False)
    given = arguments.thresholds if arguments.threshold is None else arguments.threshold
    thresholds = np.broadcast_to(read_thresholds(given, source, annotator), len(annotator.labels))
    exporter = Exporter(annotator, batch=batch, explain=arguments.attention)
    num_bytes = len(formats) * exporter.num_bytes
    with exit_on_sigterm(), os_errors_as_input_errors(output, num_bytes, "--output names another place"):
        output.mkdir(parents=True, exist_ok=True)
        check_room(output, num_bytes)
        contents, facts = {}, {}
        for name in tqdm(formats, desc="export", unit="file", leave=False, dynamic_ncols=True):
            start = time.perf_counter()
            content, told = exporter.onnx() if name == "onnx" else exporter.stablehlo(arguments.platforms)
            contents[name], facts[name] = content, {**told, "seconds": round(time.perf_counter() - start, 1)}
        for name, file in _FILES.items():
            if name in contents:
                write_bytes(output / file, contents[name])
            else:
                (output / file).unlink(missing_ok=True)  # of an earlier model
        files = {_FILES[name]: facts[name] for name in formats}
        write_json(output / _FACTS, {**exporter.describe(thresholds), "files": files})
    for file, told in files.items():
        print(f"{printable(str(output / file))}: {_summary(told)}")
    labels = format_count(len(annotator.labels), "label")
    print(f"{printable(str(output / _FACTS))}: {labels}, thresholds, how photos are prepared")


def _summary(told: dict[str, Any]) -> str:
    size, differences = f"{told['bytes'] / 1e6:,.1f} MB in {told['seconds']} s", told["max_difference"]
    if differences is None:
        return f"{size}, not tried: this machine has none of {', '.join(told['platforms'])}"
    apart = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    return f"{size}; largest difference from the model: {apart}"


def _check(arguments: argparse.Namespace) -> None:
    check_model_arguments(arguments)
    task = (arguments.config or (read_run_config(arguments.workdir) if arguments.workdir.is_dir() else {})).get("task")
    if task not in (None, "annotation"):
        where = arguments.workdir or "--config"
        raise InputError(f"{where} is of config.task={task!r}; only annotators are exported, config.task='annotation'")
    if arguments.format != "stablehlo" and arguments.dtype != "float32":
        raise InputError(f"ONNX is written in float32; leave out --dtype {arguments.dtype}, or --format stablehlo")
    _check_output(arguments.output, arguments.force)


def _check_output(output: Path, force: bool) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; name a folder")
    there = [file for file in (*_FILES.values(), _FACTS) if (output / file).exists()]
    if there and not force:
        raise InputError(
            f"{output} holds {', '.join(there)} already; --force replaces them, --output names another place"
        )


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else positive(text)


def _platforms(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in PLATFORMS:
            raise argparse.ArgumentTypeError(f"unknown platform {name!r}; known: {', '.join(PLATFORMS)}")
    return names
