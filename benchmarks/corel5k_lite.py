"""Trains heads on frozen EfficientNet-Lite2 features of Corel-5k with every loss and several seeds.

    python -m benchmarks.corel5k_lite --full --root datasets --output benchmarks/results/corel5k-lite2-cpu.json

    python -m benchmarks.corel5k_lite --fine_tune --seeds 1 2 --runs runs/fine-tuned --output FILE.json

Without `--full`, trains one head with one seed. `--fine_tune` trains both heads together with EfficientNet-Lite0 at
192 px, with the proposed loss. This takes hours on a CPU. Each run is evaluated at threshold 0.5 and at MCC thresholds.
Run it from the repository. An interrupted benchmark continues with the same `--runs`.
"""

import argparse
import csv
import importlib
import itertools
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from aia_jax.cli.flags import Parser
from aia_jax.cli.train import train
from aia_jax.data.annotation.annotations import read_annotations
from aia_jax.evaluation.evaluate import evaluate
from aia_jax.report.figures import QUIET, Page
from aia_jax.report.table import COLUMNS, Row, metric_table
from aia_jax.utils.files import write_json
from benchmarks.comparison import add_seed_arguments, chosen_seeds, run_command
from benchmarks.timing import machine, progress, versions

_MODEL = "efficientnet_lite2, frozen, at 288 px"
_FINE_TUNED = "efficientnet_lite0, fine-tuned, at 192 px"
_RUNS = (("gap", "bce"), ("gap", "focal"), ("gap", "asymmetric"), ("gap", "proposed"), ("attention", "proposed"))
_COLORS = {"gap": "#0068a8", "attention": "#c8400a"}
_QUICK, _SEEDS = _RUNS[3:4], (1, 2, 3)
_PHOTOS = (1, 11, 31, 101, 301)  # training photos of a label: the least numbers of the groups of labels


def _config(head: str, fine_tune: bool) -> ConfigDict:
    config = importlib.import_module("aia_jax.configs.corel5k_lite").get_config(head)
    if fine_tune:  # with the last epoch, so that the test split selects nothing
        config.init_backbone = config.model.backbone = "efficientnet_lite0"
        config.model.freeze_backbone = False
        config.data.image_size = 192
        config.epochs = 10
        config.ema_decay = 0.99
        config.optimizer.max_learning_rate = 3e-4
        config.eval.epoch = "last"
    return config


def run_once(
    head: str, loss: str, seed: int, root: str, workdir: Path, fine_tune: bool = False
) -> list[dict[str, Any]]:
    """Trains and evaluates one run; returns the rows of `metrics.json` with more facts.

    `seconds` of training is None if the training was interrupted.
    """
    config = _config(head, fine_tune)
    config.loss.name, config.seed, config.data.root = loss, seed, root
    config.checkpoint.keep = 1
    timing, is_new = workdir / "seconds.json", not workdir.exists()
    start = time.perf_counter()
    train(config, workdir)
    if not timing.exists():
        write_json(timing, time.perf_counter() - start if is_new else None)
    evaluate(config, workdir, workdir / "evaluation", thresholds="mcc")
    facts = {"head": head, "loss": loss, "seed": seed, "seconds": json.loads(timing.read_text())}
    rows = json.loads((workdir / "evaluation" / "metrics.json").read_text())["rows"]
    curve = _curve(workdir / "metrics.jsonl", f"{config.eval.split}_{'ema' if config.ema_decay else 'raw'}")
    groups = {"curve": curve, "ap_by_photos": _ap_by_photos(config, workdir / "evaluation" / "per_label.csv")}
    return [{**row, **facts, **groups} for row in rows]


def _curve(log: Path, kind: str) -> list[dict[str, float]]:
    """Returns the metrics after each epoch."""
    lines = map(json.loads, log.read_text().splitlines())
    return [{name: line[name] for name in ("epoch", "f1", "n_plus", "map")} for line in lines if line["kind"] == kind]


def _ap_by_photos(config: ConfigDict, table: Path) -> list[dict[str, float]]:
    """Returns the mean AP of the labels in each group of `_PHOTOS`, for the weights in the table."""
    annotations = read_annotations(config.data.root, config.data.name, "train")
    photos = dict(zip(annotations.labels, annotations.targets.sum(axis=0).tolist(), strict=True))
    with table.open(encoding="utf-8", newline="") as file:
        precision = {row["label"]: float(row["ap"]) for row in csv.DictReader(file)}
    groups = [
        (least, [precision[label] for label, number in photos.items() if least <= number < most])
        for least, most in itertools.pairwise((*_PHOTOS, math.inf))
    ]
    return [{"least": least, "labels": len(own), "ap": statistics.mean(own)} for least, own in groups]


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Computes mean, minimum and maximum over the seeds for each head, loss, epoch (last, best) and threshold."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        thresholds = "MCC" if "MCC" in row["name"] else "0.5"
        last_epoch = max(r["epoch"] for r in rows if _same_run(r, row))
        if row["epoch"] == last_epoch:
            groups.setdefault((row["head"], row["loss"], "last", thresholds), []).append(row)
        if row["name"].startswith("best"):
            groups.setdefault((row["head"], row["loss"], "best", thresholds), []).append(row)
    return [
        {
            **dict(zip(("head", "loss", "epoch", "thresholds"), key, strict=True)),
            "seeds": len(group),
            "mean": {name: statistics.mean(row[name] for row in group) for name in COLUMNS},
            "min": {name: min(row[name] for row in group) for name in COLUMNS},
            "max": {name: max(row[name] for row in group) for name in COLUMNS},
        }
        for key, group in groups.items()
    ]


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draws F1 by epoch of every run with the proposed loss."""
    page = Page(6.4, 4.4)
    page.write_header("F1 on the test split of Corel-5k by epoch")
    axes = page.plot(0.75, 1.0, 5.3, 2.7)
    for place, (head, color) in enumerate(_COLORS.items()):
        page.write(head, 0.75 + 1.35 * place, 0.8, color=color)
        for row in rows:
            if (row["head"], row["loss"]) == (head, "proposed"):
                points = [(point["epoch"], point["f1"]) for point in row["curve"]]
                axes.plot(*zip(*points, strict=True), color=color, linewidth=1.4)
    page.write("epoch", 6.05, 4.1, color=QUIET, ha="right")
    page.save(path)


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--root", default="datasets", help="folder that holds Corel-5k/")
    parser.add_argument("--runs", type=Path, default=Path("runs/corel5k-lite"), help="folder for the runs")
    add_seed_arguments(parser, _SEEDS, " and all losses")
    parser.add_argument("--fine_tune", action="store_true", help="train the whole network, with two heads")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw F1 by epoch here")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    """Completes the runs, prints a table and, with `--output`, writes the numbers as JSON."""
    rows, seeds = [], chosen_seeds(arguments, _SEEDS)
    runs = _RUNS if arguments.full else _QUICK
    if arguments.fine_tune:
        runs = [(head, loss) for head, loss in _RUNS if loss == "proposed"]
    for seed, (head, loss) in itertools.product(seeds, runs):
        progress(f"trains {head} with {loss}, seed {seed}")
        workdir = arguments.runs / f"{head}-{loss}-{seed}"
        rows += run_once(head, loss, seed, arguments.root, workdir, arguments.fine_tune)
    summary = summarize(rows)
    lines = [
        Row(f"{group['head']}, {group['loss']}, {group['epoch']} epoch, threshold {group['thresholds']}", group["mean"])
        for group in summary
    ]
    print(metric_table(lines, f"mean over seeds {', '.join(map(str, seeds))}"))
    print(_ap_table(rows))
    if arguments.plot:
        draw(arguments.plot, rows)
    if arguments.output:
        model = _FINE_TUNED if arguments.fine_tune else _MODEL
        measured = [
            {"name": line.name, "published": "", "model": model, "num_images": 499, **line.metrics} for line in lines
        ]
        document = {"machine": machine(), "packages": versions(), "summary": summary, "runs": rows, "rows": measured}
        write_json(arguments.output, document)


def _ap_table(rows: list[dict[str, Any]]) -> str:
    """Formats the mean AP of each group of labels for each head and loss, over the seeds."""
    lines = [f"\n{'AP of labels by training photos':<40}" + "".join(f"{f'>= {least}':>9}" for least in _PHOTOS)]
    for head, loss in dict.fromkeys((row["head"], row["loss"]) for row in rows):
        own = [row["ap_by_photos"] for row in rows if (row["head"], row["loss"]) == (head, loss)]
        means = [statistics.mean(group["ap"] for group in column) for column in zip(*own, strict=True)]
        lines.append(f"{f'{head}, {loss}':<40}" + "".join(f"{mean:>9.3f}" for mean in means))
    counts = "".join(f"{group['labels']:>9}" for group in rows[0]["ap_by_photos"])
    return "\n".join([*lines, f"{'labels':<40}{counts}"])


def _same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("head", "loss", "seed"))


if __name__ == "__main__":
    run_command(_make_parser(), _run)
