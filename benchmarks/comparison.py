"""Times a step of this project and of PyTorch on the same device, and compares both with the device's roofline."""

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from aia_jax.cli.exit_codes import execute, fail
from aia_jax.cli.flags import Parser, add_config_argument, at_least, positive
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from benchmarks.roofline import Work, bounds, count_work, measure_device
from benchmarks.step import check_config, first_device, labels_of, measure_ours
from benchmarks.timing import isolated, machine, progress, versions

SMALL = "On a CPU: small shapes and float32; --full uses the sizes of the config."

_SMALL_SIZE, _SMALL_BATCH = 160, 4
VARIANTS = [(False, False), (True, False), (False, True), (True, True)]  # channels_last, compiled


def compare(
    config: ConfigDict,
    *,
    inference: bool,
    windows: int = 5,
    seconds: float = 1.0,
    full: bool = False,
    torch_compile: bool = False,
    profile: str | None = None,
) -> dict[str, Any]:
    """Measures the roofline, this project's step and PyTorch's, each in a new process.

    Args:
        config: an annotation config. On a CPU its sizes are reduced (160 px, batch 4, float32) unless `full`.
        inference: time the prediction step instead of the training step.
        windows, seconds: see `timing.time_windows`.
        torch_compile: compile PyTorch's step on a CPU too.
        profile: folder for a trace of this project's step.

    Raises:
        InputError: the config is not supported.
    """
    check_config(config)
    if profile:
        check_writable(Path(profile) / "trace")
    started_on = machine()
    progress("bandwidth and arithmetic of the device")
    roofline = _usable(isolated(measure_device, windows, seconds))
    platform = roofline["device"]["platform"]
    small = platform == "cpu" and not full
    config = shrunk(config) if small else config
    timing = (inference, windows, seconds)
    progress("aia_jax: compiles the step, which can take a minute on a CPU, and times it")
    rows = [{"name": "aia_jax", **isolated(measure_ours, config, *timing, profile)}]
    for variant in VARIANTS:
        if platform != "cpu" or torch_compile or not variant[1]:
            rows.append(peer_row(peer_name(*variant), measure_peer, config, variant, platform, *timing))
    return {
        "step": "inference" if inference else "training",
        "machine": started_on,
        "device": roofline.pop("device"),
        "versions": versions(),
        "model": f"{config.model.backbone} + {config.model.head}",
        "image_size": config.data.image_size,
        "batch_size": config.batch_size,
        "num_labels": labels_of(config),
        "dtype": config.model.dtype,
        "small_because_cpu": small,
        "results": rows,
        **_ratios(rows, roofline, count_work(config, labels_of(config), inference=inference)),
    }


def _ratios(rows: list[dict[str, Any]], roofline: dict[str, Any], work: Work) -> dict[str, Any]:
    """This project's speed relative to the best peer and to the bounds of the roofline."""
    bound, ours = bounds(work, roofline), rows[0].get("images_per_second", {}).get("median")
    best, ratio = best_peer(rows)
    counted = {"gflop_per_image": work.flops / 1e9, "gb_per_image": work.bytes / 1e9}
    return {
        "roofline": {**roofline, **counted, "images_per_second": bound},
        "best_peer": best,
        "ratio_to_best_peer": ratio,
        "ratio_to_roofline": {name: ours / rate for name, rate in bound.items()} if ours else {},
    }


def peer_row(name: str, measure: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Measures a variant of the peer; a failure becomes a row with its reason instead of an error."""
    progress(name)
    try:
        return {"name": name, **isolated(measure, *args)}
    except InputError as error:
        return {"name": name, "failed": str(error)}


def best_peer(rows: list[dict[str, Any]]) -> tuple[str | None, float | None]:
    """Returns the fastest peer that did not fail, and the speed of "aia_jax" relative to it, or None if unknown."""
    rates = {row["name"]: row["images_per_second"]["median"] for row in rows if "failed" not in row}
    ours = rates.pop("aia_jax", None)
    best = max(rates, key=rates.get, default=None)
    return best, ours / rates[best] if ours and best else None


def usable_device() -> dict[str, Any]:
    """Returns `first_device`, read in a new process.

    Raises:
        InputError: JAX finds no usable device.
    """
    return _usable(isolated(first_device))


def _usable(found: dict[str, Any]) -> dict[str, Any]:
    if "failed" in found:
        raise InputError(f"JAX's device cannot be used: {found['failed']}")
    return found


def shrunk(config: ConfigDict) -> ConfigDict:
    """Returns the config with at most 160 px and batch 4, in float32."""
    config = config.copy_and_resolve_references()
    config.data.image_size = min(config.data.image_size, _SMALL_SIZE)
    config.batch_size = min(config.batch_size, _SMALL_BATCH)
    config.model.dtype = "float32"
    return config


def table(document: dict[str, Any]) -> str:
    """Formats the document as text."""
    size, device = document["image_size"], document["device"]
    lines = [
        f"{document['model']} at {size} px, {document['step']} step, batch {document['batch_size']}, "
        f"{document['dtype']}, on {device['kind']} ({device['platform']})"
    ]
    if document["small_because_cpu"]:
        lines.append(SMALL)
    lines.append(f"\n{'':<30}{'img/s':>10}{'min':>10}{'max':>10}{'ms/step':>10}{'compile s':>11}{'peak GB':>9}")
    for row in document["results"]:
        lines.append(_line(row))
    roofline, bound = document["roofline"], document["roofline"]["images_per_second"]
    tflops, gbs = roofline["matmul_flops_per_second"] / 1e12, roofline["copy_bytes_per_second"] / 1e9
    lines += [
        f"{'roofline, compute':<30}{bound['compute']:>10.1f}   {roofline['gflop_per_image']:.1f} GFLOP per image at "
        f"{tflops:.2f} TFLOP/s ({roofline['matmul_dtype']} product)",
        f"{'roofline, memory':<30}{bound['memory']:>10.1f}   {roofline['gb_per_image']:.3f} GB per image at "
        f"{gbs:.1f} GB/s",
        f"{'roofline, both in series':<30}{bound['in_series']:>10.1f}",
    ]
    if document["ratio_to_best_peer"]:
        lines.append(f"\n{document['ratio_to_best_peer']:.2f} x the best of PyTorch ({document['best_peer']})")
    for name, ratio in document["ratio_to_roofline"].items():
        lines.append(f"{ratio:.2f} x the roofline {name.replace('_', ' ')}")
    return "\n".join(lines)


def command(description: str, *, inference: bool) -> None:
    """Runs the command line of `train` and `infer`."""
    parser = make_parser(description)
    parser.add_argument("--profile", metavar="DIR", help="write a trace of a few steps of this project here")
    run_command(parser, functools.partial(_run, inference))


def make_parser(description: str) -> Parser:
    """Makes a parser with `--config`, `--output`, and the flags that `timing_options` reads."""
    parser = Parser(description)
    add_config_argument(parser)
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    parser.add_argument("--windows", type=positive, default=5, metavar="N", help="windows to time; the default is 5")
    parser.add_argument(
        "--seconds", type=at_least(0.0), default=1.0, metavar="S", help="approximate length of a window; default: 1"
    )
    add_full_argument(parser, "use the config unchanged on a CPU too")
    parser.add_argument("--torch_compile", action="store_true", help="compile PyTorch's step on a CPU too")
    return parser


def add_full_argument(parser: Parser, text: str) -> None:
    """Adds `--full`, the flag of all benchmarks that measure only a part of everything by default."""
    parser.add_argument("--full", action="store_true", help=text)


def add_seed_arguments(parser: Parser, seeds: Sequence[int], others: str = "") -> None:
    """Adds `--seeds` and `--full`, which `chosen_seeds` reads. `others` names what `--full` adds beside seeds."""
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help=f"seeds; default: {seeds[0]}")
    add_full_argument(parser, f"use the seeds {', '.join(map(str, seeds))}{others}; takes longer than three minutes")


def chosen_seeds(arguments: argparse.Namespace, seeds: Sequence[int]) -> Sequence[int]:
    """Returns the seeds of `--seeds`, or with `--full` all `seeds`, or the first of them."""
    return arguments.seeds or (seeds if arguments.full else seeds[:1])


def timing_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of `windows`, `seconds`, `full` and `torch_compile`."""
    return {name: getattr(arguments, name) for name in ("windows", "seconds", "full", "torch_compile")}


def run_command(parser: Parser, measure: Callable[[argparse.Namespace], int | None]) -> None:
    """Runs a benchmark and exits; checks first that `--output` can be written."""

    def checked(arguments: argparse.Namespace) -> int | None:
        check_writable(arguments.output)
        return measure(arguments)

    sys.exit(execute(parser, checked))


def check_writable(*paths: str | Path | None) -> None:
    """Checks before a long computation that its output files can be written. Creates their folders.

    Args:
        paths: output files; None and "" are ignored.

    Raises:
        InputError: a path is a folder, or no file can be created in its folder.
    """
    for path in map(Path, filter(None, paths)):
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file in it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None


def finish(document: dict[str, Any], text: str, output: Path | None) -> int:
    """Prints the text and writes the document to `output`; the exit code is 1 if this project's side failed."""
    print(text)
    if output:
        write_json(output, document)
    failed = [row["failed"] for row in document["results"] if row["name"] == "aia_jax" and "failed" in row]
    return fail(f"this project's side failed: {failed[0]}", 1) if failed else 0


def _run(inference: bool, arguments: argparse.Namespace) -> int:
    options = timing_options(arguments)
    document = compare(arguments.config, inference=inference, profile=arguments.profile, **options)
    return finish(document, table(document), arguments.output)


def peer_name(channels_last: bool, compiled: bool) -> str:
    """Names a variant of the PyTorch side."""
    return "torch " + ("channels_last" if channels_last else "NCHW") + (" compiled" if compiled else "")


def measure_peer(config: ConfigDict, variant: tuple[bool, bool], *timing: Any) -> dict[str, Any]:
    """Calls `torch_baseline.measure_peer`; the main process must not need torch."""
    from benchmarks import torch_baseline

    return torch_baseline.measure_peer(config, torch_baseline.Variant(*variant), *timing)


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['name']:<30}    failed: {row['failed']}"
    rate, step = row["images_per_second"], row["seconds_per_step"]["median"]
    compiled, peak = row["compile_seconds"], row["peak_gb"]
    return (
        f"{row['name']:<30}{rate['median']:>10.1f}{rate['min']:>10.1f}{rate['max']:>10.1f}{1e3 * step:>10.1f}"
        f"{'' if compiled is None else f'{compiled:.1f}':>11}{'' if peak is None else f'{peak:.2f}':>9}"
    )
