"""Trains and evaluates image search with and without its modalities and attentions, with several seeds.

    python -m benchmarks.search --full --config configs/demo_search.py --output search-scenes-cpu.json

`--config.field=value` overrides a field. The config's annotator must be trained. An interrupted benchmark continues
with the same `--runs`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from aia_jax.cli.exit_codes import execute
from aia_jax.cli.flags import Parser
from aia_jax.cli.train import train
from aia_jax.report.table import SEARCH_COLUMNS, Row, metric_table
from aia_jax.tasks.search import describe_model
from aia_jax.utils.files import write_json
from benchmarks.comparison import add_seed_arguments, check_writable, chosen_seeds
from benchmarks.timing import machine, progress, versions

_SEEDS = (1, 2, 3)
VARIANTS: dict[str, dict[str, Any]] = {
    "amc": {},
    "visual": {"model.modalities": "visual"},
    "keywords": {"model.modalities": "keywords"},
    "no_van": {"model.visual_attention": False},
    "no_lan": {"model.keyword_attention": False},
    "no_mtn": {"model.modality_attention": False},
}


def run_once(config: ConfigDict, variant: str, seed: int, workdir: Path) -> list[dict[str, Any]]:
    """Trains and evaluates one run; returns the rows of the best epoch, for all queries and for unseen queries."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({**VARIANTS[variant], "seed": seed, "checkpoint.keep": 1})
    timing = workdir / "seconds.json"
    start = time.perf_counter()
    train(config, workdir)
    if not timing.exists():
        write_json(timing, time.perf_counter() - start)
    facts = {"variant": variant, "seed": seed, "seconds": json.loads(timing.read_text())}
    rows = json.loads((workdir / "evaluation" / "metrics.json").read_text())["rows"]
    best = [row for row in rows if row["name"].startswith("best")]
    return [
        {**row, **facts, "queries": kind} for row, kind in zip(best, ("all", "not trained on"), strict=len(best) == 2)
    ]


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Computes mean, minimum and maximum over the seeds for each variant and kind of queries."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["queries"], row["model"]), []).append(row)
    return [
        {
            "queries": queries,
            "model": model,
            "seeds": len(group),
            **{
                name: {metric: of(row[metric] for row in group) for metric in SEARCH_COLUMNS}
                for name, of in (("mean", statistics.mean), ("min", min), ("max", max))
            },
        }
        for (queries, model), group in groups.items()
    ]


def measure(arguments: argparse.Namespace, config: ConfigDict) -> None:
    """Completes the runs, prints a table and writes the numbers as JSON."""
    check_writable(arguments.output)
    rows = []
    for variant in arguments.variants or (VARIANTS if arguments.full else ["amc"]):
        for seed in chosen_seeds(arguments, _SEEDS):
            progress(f"trains {variant} with seed {seed}")
            rows += run_once(config, variant, seed, arguments.runs / config.data.name / f"{variant}-{seed}")
    summary = sorted(summarize(rows), key=lambda group: group["queries"])
    lines = [
        Row(f"{group['model']}, {group['queries']}, {kind} of {group['seeds']}", group[kind])
        for group in summary
        for kind in ("mean", "min", "max")
    ]
    print(metric_table(lines, f"{config.data.name}, test split", columns=SEARCH_COLUMNS))
    if arguments.output:
        measured = [
            {"name": line.name, "published": "", "model": config.data.name, **line.metrics}
            for line in lines
            if ", mean of " in line.name
        ]
        document = {
            "machine": machine(),
            "packages": versions(),
            "config": json.loads(config.to_json()),
            "model": describe_model(config.model),
            "summary": summary,
            "runs": rows,
            "rows": measured,
        }
        write_json(arguments.output, document)


def main() -> int:
    """Runs the command and returns its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--config", required=True, help="a config of image search")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"), help="folder for the runs")
    add_seed_arguments(parser, _SEEDS, " and all variants")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: amc")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return execute(parser, lambda arguments: measure(arguments, arguments.config))


if __name__ == "__main__":
    raise SystemExit(main())
