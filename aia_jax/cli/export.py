"""Export an annotator as files that run without this project: StableHLO for JAX, ONNX for other runtimes.

    aia export --workdir runs/demo --output exported --format both --attention

DIR gets model.stablehlo, model.onnx, and model.json (labels, thresholds, preparation of photos, measured differences).
Runs each file and the model on the same images, and does not write the file if the scores differ.
"""

import argparse
import time
from typing import Any

from tqdm import tqdm

from aia_jax.cli.devices import enable_compilation_cache
from aia_jax.cli.flags import Parser, add_model_arguments, local, model_source, positive
from aia_jax.cli.outputs import check_output_folder, staged_output
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from aia_jax.utils.messages import format_count, printable

_FILES = {"stablehlo": "model.stablehlo", "onnx": "model.onnx"}
_FACTS = "model.json"
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
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
Photos through {_FILES["stablehlo"]}, with jax, flatbuffers, numpy and pillow alone:

{EXAMPLE}"""


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia export`."""
    parser.epilog = _EPILOG
    add_model_arguments(parser)
    parser.add_argument("--output", required=True, type=local, metavar="DIR", help="folder for the files")
    parser.add_argument("--format", choices=(*_FILES, "both"), default="stablehlo", help="default: stablehlo")
    parser.add_argument("--batch", type=_batch, metavar="N|dynamic", help="images per call; default: any number")
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="dtype of the computation; default: float32")
    platforms = f"platforms of the StableHLO file, out of {', '.join(_PLATFORMS)}; default: cpu,cuda,tpu"
    parser.add_argument("--platforms", type=_platforms, default=("cpu", "cuda", "tpu"), metavar="P,P", help=platforms)
    parser.add_argument("--attention", action="store_true", help="also export the attention maps of all labels")
    parser.add_argument("--force", action="store_true", help="replace an exported model in --output")


def run(arguments: argparse.Namespace) -> None:
    """Exports the annotator in each format of `--format`, and prints a line for each file.

    Raises:
        InputError: a file or folder that a flag names cannot be used, a package is missing, or an exported file gives
            other scores than the annotator. With `--format both`, the file of the other format is written.
    """
    import numpy as np

    from aia_jax.inference.annotator import check_threshold, load_trained_annotator, read_thresholds
    from aia_jax.inference.export import NUM_IMAGES, Exporter, import_onnx
    from aia_jax.inference.trained_dual_encoder import is_dual_encoder

    source = model_source(arguments)
    if arguments.format != "stablehlo" and arguments.dtype != "float32":
        raise InputError(f"ONNX is written in float32; leave out --dtype {arguments.dtype}, or --format stablehlo")
    check_output_folder(arguments.output, (*_FILES.values(), _FACTS), force=arguments.force)
    formats = tuple(_FILES) if arguments.format == "both" else (arguments.format,)
    if arguments.format == "onnx":
        import_onnx()  # reports a missing package before the export
    enable_compilation_cache()
    batch, output = arguments.batch, arguments.output
    if not arguments.weights and source.is_dir() and is_dual_encoder(source):
        raise InputError(f"{source} holds a dual encoder, which cannot be exported; name an annotator, such as corel5k")
    threshold = check_threshold(arguments.threshold, source)
    options = {"labels": arguments.labels, "batch_size": batch or NUM_IMAGES, "dtype": arguments.dtype}
    annotator = load_trained_annotator(source, arguments.config, **options, fold=False)
    thresholds = np.broadcast_to(read_thresholds(threshold, annotator), len(annotator.labels))
    exporter = Exporter(annotator, batch=batch, explain=arguments.attention)
    files, problems = {}, {}
    with staged_output(output, len(formats) * exporter.num_bytes) as folder:
        for name in tqdm(formats, desc="export", unit="file", leave=False, dynamic_ncols=True):
            start = time.perf_counter()
            try:
                content, facts = exporter.onnx() if name == "onnx" else exporter.stablehlo(arguments.platforms)
            except InputError as error:
                problems[_FILES[name]] = error
                continue
            files[_FILES[name]] = {**facts, "seconds": round(time.perf_counter() - start, 1)}
            (folder / _FILES[name]).write_bytes(content)
        if not files:
            raise InputError(f"nothing was written: {'; '.join(map(str, problems.values()))}")
        write_json(folder / _FACTS, {**exporter.describe(thresholds), "files": files})
    for file in set(_FILES.values()) - set(files):
        (output / file).unlink(missing_ok=True)  # removes an earlier export, perhaps of another model
    for file, facts in files.items():
        print(f"{printable(str(output / file))}: {_summary(facts)}")
    labels = format_count(len(annotator.labels), "label")
    print(f"{printable(str(output / _FACTS))}: {labels}, thresholds, how photos are prepared")
    for file, problem in problems.items():
        raise InputError(f"{file} was not written, the files above were: {problem}")


def _summary(facts: dict[str, Any]) -> str:
    size, differences = f"{facts['bytes'] / 1e6:,.1f} MB in {facts['seconds']} s", facts["max_difference"]
    if differences is None:
        return f"{size}, not run: this machine has none of {', '.join(facts['platforms'])}"
    listed = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    return f"{size}; largest difference from the model: {listed}"


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else positive(text)


def _platforms(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in _PLATFORMS:
            raise argparse.ArgumentTypeError(f"unknown platform {name!r}; known: {', '.join(_PLATFORMS)}")
    return names
