"""Trains the dual encoder on Flickr8k with several seeds, and without each of its parts.

    python -m benchmarks.dual_encoder --root datasets/flickr8k --runs runs/dual --output results.json

Each row is a run, whose best epoch is chosen on the validation split. An interrupted benchmark continues with the same
`--runs`.
"""

import sys
from pathlib import Path
from typing import Any

from aia_jax.cli.exit_codes import execute
from aia_jax.cli.flags import Parser, local
from aia_jax.cli.train import train
from aia_jax.configs import dual_encoder
from aia_jax.training.metric_writer import read_metrics
from aia_jax.utils.files import read_json, write_json
from benchmarks.comparison import add_full_argument
from benchmarks.timing import machine, progress, versions

_IMAGE, _TEXT, _LOSS = "model.image_features", "model.text_features", "loss.name"
_VISUAL = {"loss.visual": True, "loss.visual_weight": 0.1}
# For each run: what it shows, and the fields that differ from the config.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid-1": ("as configured, seed 1", {}),
    "sigmoid-2": ("as configured, seed 2", {"seed": 2}),
    "sigmoid-3": ("as configured, seed 3", {"seed": 3}),
    "contrastive-1": ("contrastive loss, seed 1", {_LOSS: "contrastive"}),
    "contrastive-2": ("contrastive loss, seed 2", {_LOSS: "contrastive", "seed": 2}),
    "contrastive-3": ("contrastive loss, seed 3", {_LOSS: "contrastive", "seed": 3}),
    "words": ("text: words alone, without MiniLM", {_TEXT: ("words",)}),
    "sentence": ("text: sentence", {_TEXT: ("sentence",)}),
    "tokens": ("text: sentence, token_max", {_TEXT: ("sentence", "token_max")}),
    "mean": ("image: mean", {_IMAGE: ("mean",)}),
    "mean-classes": ("image: mean, classes", {_IMAGE: ("mean", "classes")}),
    "mean-max": ("image: mean, max", {_IMAGE: ("mean", "max")}),
    "queries": ("image: mean, max, classes, queries", {_IMAGE: ("mean", "max", "classes", "queries")}),
    "plain": ("image: mean, max; text: sentence", {_IMAGE: ("mean", "max"), _TEXT: ("sentence",)}),
    "batch-500": ("batches of 500", {"batch_size": 500}),  # the next losses take N^3 operations for a batch of N
    "visual-0.1": ("batches of 500, Visual Semantic Loss, factor 0.1", {"batch_size": 500, **_VISUAL}),
    "visual-1": ("batches of 500, Visual Semantic Loss", {"batch_size": 500, "loss.visual": True}),
    "size-384": ("vectors of 384 numbers", {"model.embed_size": 384}),
    "shipped": ("the shipped model open", {"model.embed_size": 384, "model.word_size": 128}),
}


def measure(name: str, root: Path, workdir: Path) -> dict[str, Any]:
    """Trains a variant, unless this is done. Returns its results."""
    what, fields = VARIANTS[name]
    config = dual_encoder.get_config("flickr8k")
    config.data.root = str(root)
    config.update_from_flattened_dict(fields)
    if not (workdir / "evaluation" / "metrics.json").exists():
        train(config, workdir)
    test = read_json(workdir / "evaluation" / "metrics.json", "the results")["rows"][0]
    validation = max(record["rsum"] for record in read_metrics(workdir) if "rsum" in record)
    own = {"name": f"dual encoder, {what}", "run": name, "fields": fields, "validation_rsum": validation}
    return {**test, **own}


def run(arguments: Any) -> None:
    """Measures the chosen variants, prints a line for each, and writes the results."""
    rows = []
    for name in arguments.only or (VARIANTS if arguments.full else [next(iter(VARIANTS))]):
        progress(f"trains {name}")
        rows.append(measure(name, arguments.root, arguments.runs / name))
        print(f"{name}: validation {rows[-1]['validation_rsum']:.1f}, test {rows[-1]['rsum']:.1f}", flush=True)
    if arguments.output:
        write_json(arguments.output, {"machine": machine(), "packages": versions(), "rows": rows})


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--root", type=local, default=Path("datasets/flickr8k"), metavar="DIR", help="Flickr8k")
    parser.add_argument("--runs", type=local, default=Path("runs/dual"), metavar="DIR", help="folder for the runs")
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, metavar="NAME", help="only these runs; default: the first"
    )
    add_full_argument(parser, "all runs; takes many hours")
    parser.add_argument("--output", type=local, metavar="FILE.json", help="also write the results to this file")
    sys.exit(execute(parser, run))
