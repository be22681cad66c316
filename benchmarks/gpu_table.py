"""Writes the results of `benchmarks.gpu` as a table into a page.

    python -m benchmarks.gpu_table results docs/performance.md

The page has the lines `<!-- gpu -->` and `<!-- end of gpu -->`. The table replaces the lines between them.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from aia_jax.cli.exit_codes import execute
from aia_jax.cli.flags import Parser, local
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, read_text, write_bytes
from benchmarks.comparison import VARIANTS, best_peer, peer_name
from benchmarks.gpu_stages import (
    BARS,
    CHANGES,
    COREL5K,
    MODELS,
    REASONINGS,
    ROOFLINES,
    change_name,
    scoring_name,
    step_name,
)

_MISSING = "not measured"
_PEER_BAR = 1.5
_SIDES = ("aia_jax", *(peer_name(*variant) for variant in VARIANTS))
_MARKED = re.compile(r"(?<=<!-- gpu -->\n)(.*\n)?(?=<!-- end of gpu -->)", re.DOTALL)


def read_results(folder: Path) -> dict[str, Any]:
    """Returns the results in a folder; {} without the file.

    Raises:
        InputError: the file cannot be read or is no file of `benchmarks.gpu`.
    """
    path = folder / "gpu.json"
    if not path.exists():
        return {}
    document = read_json(path, "the results of benchmarks.gpu")
    if not isinstance(document, dict) or not {"smoke", "runs", "results"} <= document.keys():
        raise InputError(f"{path} has no results of benchmarks.gpu; name another folder")
    return document


def table(document: dict[str, Any]) -> str:
    """Formats results as Markdown. "not measured" stands for each result that is missing; `document` may be {}."""
    results = document.get("results", {})
    parts = [_title(document), _steps(results), _kernels(results), _changes(results), _scoring(results)]
    return "\n\n".join(filter(None, [*parts, _corel5k(results.get(COREL5K, {}))]))


def fill(page: Path, document: dict[str, Any]) -> None:
    """Replaces the marked part of a page by the table.

    Raises:
        InputError: the page does not have the marks.
    """
    text, count = _MARKED.subn(lambda _: f"\n{table(document)}\n\n", read_text(page))
    if count != 1:
        raise InputError(f"{page} needs the line <!-- gpu --> and below it the line <!-- end of gpu -->, once")
    write_bytes(page, text.encode())


def _title(document: dict[str, Any]) -> str:
    roofline = document.get("results", {}).get(ROOFLINES, {})
    runs = [run for run in document.get("runs", []) if "device" in run]
    lines = ["**`--smoke`: tiny shapes on a CPU. The numbers mean nothing.**\n"] if document.get("smoke") else []
    device = f"Device: {runs[-1]['device']['kind']}, jax {runs[-1]['versions']['jax']}. " if runs else ""
    measured = _MISSING
    if "copy_bytes_per_second" in roofline:
        flops, copied = roofline["matmul_flops_per_second"] / 1e12, roofline["copy_bytes_per_second"] / 1e12
        measured = f"{flops:,.1f} TFLOP/s ({roofline['matmul_dtype']}) and {copied:.3f} TB/s"
    return "\n".join([*lines, f"{device}Matrix product and copy: {measured}."])


def _steps(results: dict[str, Any]) -> str:
    """The table of steps: this project, the bars and the best PyTorch."""
    rows = []
    for (model, step), bar in BARS.items():
        sides = [{"name": name, **results.get(step_name(model, step, name), {})} for name in _SIDES]
        measured = [side for side in sides if "images_per_second" in side]
        best, ratio = best_peer(measured)
        peers = sum(side["name"] != "aia_jax" for side in measured)
        theirs = "; ".join({side["failed"] for side in sides[1:] if "failed" in side}) or _MISSING
        if best:
            theirs = f"{_rate(next(s for s in sides if s['name'] == best))} ({best.removeprefix('torch ')})"
        compared = _MISSING if ratio is None else f"{ratio:.2f}"
        cells = (_rate(sides[0]), f"{bar:,}", theirs, f"{peers} of {len(VARIANTS)}", compared)
        rows.append((f"{model}, {step}", *cells))
    head = ("img/s", "aia_jax", "bar", "best PyTorch", "variants measured", f"ratio (bar {_PEER_BAR})")
    return _markdown(head, rows, whole=True)


def _kernels(results: dict[str, Any]) -> str:
    """The table of measured and modelled times by kind of kernel."""
    rows = []
    for model, step in BARS:
        found = results.get(step_name(model, step, "aia_jax"), {}).get("kernels", {})
        name = f"{model}, {step}"
        if "by_kind" not in found:
            rows.append((name, *["failed" if "failed" in found else _MISSING] * 4))
            continue
        for kind, part in found["by_kind"].items():
            if part["measured_ms"] >= 0.01 * found["measured_ms"]:
                numbers = (f"{part[field]:.3f}" for field in ("gb_per_image", "modelled_ms", "measured_ms"))
                rows.append((f"{name}: {kind}", str(part["kernels"]), *numbers))
        rows.append((f"{name}: all", "", "", f"{found['modelled_ms']:.3f}", f"{found['measured_ms']:.3f}"))
    return _markdown(
        ("time of a step by kind of kernel", "kernels", "GB per image", "modelled ms", "measured ms"), rows
    )


def _changes(results: dict[str, Any]) -> str:
    """The table of changed configs."""
    rows = []
    for model in MODELS:
        for name in ("aia_jax", *map(change_name, CHANGES[model])):
            row = results.get(step_name(model, "training", name), {})
            memory = f"{row['temporary_gb']:.1f}" if "temporary_gb" in row else _MISSING
            rows.append((model, "as in the first table" if name == "aia_jax" else f"`{name}`", _rate(row), memory))
    return _markdown(("training with other options", "config", "img/s", "temporary memory, GB"), rows)


def _scoring(results: dict[str, Any]) -> str:
    """The table of scoring all pairs of COCO."""
    rows = []
    for reasoning in REASONINGS:
        ours, peer = (results.get(scoring_name(reasoning, side), {}) for side in ("aia_jax", "torch"))
        seconds = _MISSING if "failed" not in ours else "failed"
        if "captions" in ours:
            whole = ours["whole_seconds"]
            seconds = f"{ours['extrapolated_seconds']:.1f}, extrapolated" if whole is None else f"{whole:.1f}"
            seconds += f" ({ours['pairs'][0]:,} x {ours['captions']:,})"
        rows.append((reasoning, seconds, _rate(ours), _rate(peer)))
    return _markdown(("scoring COCO 5K x 25K", "seconds", "pairs/s", "pairs/s, PyTorch by caption"), rows)


def _corel5k(row: dict[str, Any]) -> str:
    if not row:
        return f"TResNet-M on Corel-5k from random weights: {_MISSING}."
    if "failed" in row:
        return f"TResNet-M on Corel-5k from random weights failed: {row['failed']}"
    scores = "; ".join(f"{r.get('name', '')} F1 {r['f1']:.3f}" for r in row["rows"] if "f1" in r)
    return f"TResNet-M on Corel-5k from random weights: {row['epochs']} epochs in {row['seconds']:.0f} s; {scores}."


def _rate(row: dict[str, Any]) -> str:
    rates = row.get("images_per_second")
    return f"{rates['median']:,.0f}" if rates else "failed" if "failed" in row else _MISSING


def _markdown(head: tuple[str, ...], rows: list[tuple[str, ...]], whole: bool = False) -> str:
    """Formats a table; unless `whole`, a table without a number becomes a sentence."""
    if not whole and all(cell == _MISSING for row in rows for cell in row[-2:]):
        return f"{head[0][0].upper()}{head[0][1:]}: {_MISSING}."
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _main(arguments: argparse.Namespace) -> None:
    fill(arguments.page, read_results(arguments.folder))


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("folder", type=local, metavar="FOLDER", help="output folder of benchmarks.gpu")
    parser.add_argument("page", type=local, metavar="FILE.md", help="page with the two marks")
    sys.exit(execute(parser, _main))
