"""Score a split with the best checkpoint of a run, or with other weights: metrics.json, scores or rankings, pictures.

    aia evaluate --config demo --workdir runs/demo --html
    aia evaluate --config demo --workdir runs/demo --split train --output /tmp/demo-train
    aia evaluate --config demo --workdir gs://bucket/demo
    aia evaluate --config corel5k --weights Annotator_Corel-5k.pth --output /tmp/corel5k
    aia evaluate --config corel5k_lite:gap --model corel5k --output /tmp/corel5k_lite
    aia evaluate --config improved_loss:corel5k --workdir runs/b --thresholds mcc
    aia evaluate --config sgraf:f30k --weights runs/sgr --weights runs/saf --output runs/sgraf

A run is evaluated in the precision of config.model.dtype. Weights from PyTorch (a file, or a folder that `aia convert`
wrote) are evaluated in float32, so that their scores equal PyTorch's. --config.model.dtype=bfloat16 or float32
overrides both.
"""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from aia_jax.cli.devices import add_device_arguments, set_up_devices
from aia_jax.cli.flags import Parser, add_config_argument, local, local_or_url, word, word_or_url
from aia_jax.utils.errors import InputError
from aia_jax.utils.model_folders import find_model, model_folder
from aia_jax.utils.storage import is_url


def _optional_path(text: str) -> Path | None:
    return local(text) if text else None


def _optional_source(text: str) -> Path | str | None:
    return local_or_url(text) if text else None


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia evaluate`."""
    add_config_argument(parser)
    run = "folder of the run to evaluate, on disk or in object storage, which then gets the results too"
    parser.add_argument("--workdir", type=_optional_source, metavar="DIR|URL", help=run)
    weights = "instead of --workdir: a PyTorch file, a folder that `aia convert` or `aia train` wrote, or a model "
    weights += "folder or its name; for retrieval, several --weights are also scored as an ensemble"
    names = ("--weights", "--model")
    parser.add_argument(
        *names, action="append", default=[], type=word_or_url, metavar="FILE|DIR|NAME|URL", help=weights
    )
    output = "folder for the results; default: `evaluation` in the folder of --workdir or --weights"
    parser.add_argument("--output", type=_optional_path, metavar="DIR", help=output)
    splits = ("train", "validation", "test")
    parser.add_argument("--split", choices=splits, default="test", help="split to score; default: test")
    limits = "annotation: also score with one threshold per label. mcc: best MCC on the training split, from the "
    limits += "published grid; exact: best MCC of all possible thresholds; FILE: a thresholds.json"
    parser.add_argument("--thresholds", default="", type=word, metavar="mcc|exact|FILE", help=limits)
    page = "annotation: also write report.html, a page of all photos, the worst first, with true and predicted labels, "
    page += "attention, precision-recall curves and confusions"
    parser.add_argument("--html", action="store_true", help=page)
    add_device_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluates the run or the weights.

    Raises:
        InputError: the flags contradict each other. Also the errors of `evaluate`.
    """
    from aia_jax.evaluation.evaluate import evaluate

    workdir = arguments.workdir
    weights = [str(find_model(source)) if is_url(source) else source for source in arguments.weights]
    if bool(workdir) == bool(weights):
        raise InputError("give --workdir, the folder of a run, or --weights, a file or folder")
    downloaded = any(map(is_url, arguments.weights))  # its folder in the cache is no place for results
    is_run = len(weights) == 1 and not downloaded and Path(weights[0]).is_dir() and not model_folder(weights[0])
    folder = workdir or (Path(weights[0]) if is_run else None)
    if not arguments.output and not folder:
        raise InputError("--weights FILE needs --output, a folder for the results; so does a model folder")
    set_up_devices(arguments)
    with contextlib.ExitStack() as stack:
        if is_url(workdir):
            from aia_jax.training.remote_workdir import run_with_results

            workdir = folder = stack.enter_context(run_with_results(workdir))
        _choose_dtype(arguments, [workdir] if workdir else [Path(source) for source in weights])
        output = arguments.output or folder / "evaluation"
        options = {"split": arguments.split, "thresholds": arguments.thresholds, "html": arguments.html}
        evaluate(arguments.config, workdir, output, weights=weights, **options)


def _choose_dtype(arguments: argparse.Namespace, sources: Sequence[Path]) -> None:
    """Sets `config.model.dtype` to float32 for weights from PyTorch, unless a flag sets it. Prints the dtype."""
    import jax

    model = arguments.config.model
    if any(override.partition("=")[0] == "--config.model.dtype" for override in arguments.overrides):
        reason = "given on the command line"
    elif any(map(_is_from_pytorch, sources)):
        model.dtype, reason = "float32", "for weights from PyTorch; --config.model.dtype overrides it"
    else:
        reason = "config.model.dtype"
    if jax.process_index() == 0:
        print(f"computing in {model.dtype}, {reason}", flush=True)


def _is_from_pytorch(source: Path) -> bool:
    """Checks whether `source` is a file, or a folder with converted weights that were not trained afterwards."""
    from aia_jax.training.runs import open_run
    from aia_jax.weights.load import is_run

    if model_folder(source):
        return False
    if not is_run(source):
        return True
    with open_run(source) as checkpointer:
        return "source" in checkpointer.best()[1]
