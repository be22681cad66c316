"""List published results, and below each the results measured here.

    aia results
    aia results runs --json results.json

A results file is a JSON object with a list `rows`, as `aia evaluate` writes it; other JSON files are ignored.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aia_jax.cli.flags import Parser, local
from aia_jax.metrics.published_results import PUBLISHED, RESULTS, RETRIEVAL_RESULTS, SEARCH_RESULTS, difference
from aia_jax.report.table import COLUMNS, RETRIEVAL_COLUMNS, SEARCH_COLUMNS, Row, metric_table
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, write_json
from aia_jax.utils.messages import nearest

DEFAULT_FOLDERS = (Path("runs"), Path("benchmarks/results"))

# Title, published rows and columns of each task.
_TABLES = (
    ("P, R, F1 as fractions; mAP in per cent", RESULTS, COLUMNS),
    ("retrieval: recalls in per cent", RETRIEVAL_RESULTS, RETRIEVAL_COLUMNS),
    ("search: as fractions, and the median rank", SEARCH_RESULTS, SEARCH_COLUMNS),
)
_LARGEST = sys.float_info.max
# Measured results: `{key of PUBLISHED: rows}`, and "" for rows without a published result. A row has `name` (weights,
# epoch, thresholds), `model`, `file`, `num_images` (None if unknown), `metrics` and perhaps `difference`.
Measured = dict[str, list[dict[str, Any]]]


def add_arguments(parser: Parser) -> None:
    """Adds the flags of `aia results`."""
    folders = "with results files; default: runs, benchmarks/results"
    parser.add_argument("folders", nargs="*", type=local, metavar="FOLDER", help=folders)
    parser.add_argument("--json", type=local, metavar="FILE", help="also write the table as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints the table of results. With `--json`, also writes the table.

    Raises InputError if a folder does not exist, or if `--json` names a folder.
    """
    for folder in arguments.folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; name folders that hold results, such as runs")
    if arguments.json and arguments.json.is_dir():
        raise InputError(f"--json {arguments.json} is a folder; name a file")
    folders = arguments.folders or [folder for folder in DEFAULT_FOLDERS if folder.is_dir()]
    measured, problems = read_measured(folders)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    print("\n\n".join(_format_table(measured, *table) for table in _TABLES))
    count = sum(map(len, measured.values()))
    print(f"\n{count} measured rows found in {', '.join(map(str, folders)) or 'no folder'}")
    if arguments.json:
        results = [{"name": name, "published": row, "measured": measured[name]} for name, row in PUBLISHED.items()]
        write_json(arguments.json, {"results": results, "no_published_row": measured[""]})
        print(f"written to {arguments.json}")


def read_measured(folders: Iterable[Path]) -> tuple[Measured, list[str]]:
    """Reads all results files below `folders`.

    Returns:
        The rows of these files, and a message for each file and each row that cannot be used.
    """
    measured: Measured = {name: [] for name in ("", *PUBLISHED)}
    problems: list[str] = []
    paths = {path.resolve(): path for folder in folders for path in sorted(folder.rglob("*.json"))}
    for path in paths.values():
        try:
            document = read_json(path, '{"rows": [...]}, or another JSON')
            listed = document.get("rows", []) if isinstance(document, dict) else []
            if not isinstance(listed, list):
                raise InputError(f"{path}: rows must be a list")
        except InputError as error:
            problems.append(str(error))
            continue
        for index, row in enumerate(listed):
            try:
                _add_row(measured, row, path)
            except InputError as error:
                problems.append(f"{path}: rows[{index}]: {error}")
    return measured, problems


def _format_table(
    measured: Measured, title: str, results: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]
) -> str:
    """Formats the results of one task: a paragraph for each published result, then rows without one."""
    lines: list[Row | str] = []
    heading = None
    for name, published in results.items():
        if (group := name.removesuffix("+mcc")) != heading:
            heading = group
            lines += ["", group.replace("/", ", ")]
        lines.append(Row("  published" + ", MCC thresholds" * (name != group), published))
        lines += [line for row in measured[name] for line in _measured_lines(row)] or ["    not measured"]
    others = [line for row in measured[""] if _columns_of(row) is columns for line in _measured_lines(row)]
    if others:
        lines += ["", "no published row", *others]
    return metric_table(lines, title, columns)


def _columns_of(row: dict[str, Any]) -> Mapping[str, str]:
    shared = (columns for _, _, columns in _TABLES[1:] if row["metrics"].keys() & columns.keys())
    return next(shared, COLUMNS)


def _measured_lines(row: dict[str, Any]) -> list[Row | str]:
    lines: list[Row | str] = [Row(f"    {row['name']}", row["metrics"])]
    if "difference" in row:
        lines.append(Row("      difference", row["difference"], signed=True))
    images = "" if row["num_images"] is None else f"{row['num_images']} images"
    return [*lines, "      " + "; ".join(part for part in (row["model"], images, row["file"]) if part)]


def _add_row(measured: Measured, row: Any, path: Path) -> None:
    """Adds a row of the results file `path` to `measured`. Raises InputError if the row is malformed."""
    if not isinstance(row, dict):
        raise InputError("must be an object")
    texts = {field: row.get(field, "") for field in ("name", "published", "model")}
    for field, text in texts.items():
        if not isinstance(text, str) or not (text.isprintable() and (text or field != "name")):
            raise InputError(f"{field} must be one line of text, found {json.dumps(text)}")
    if texts["published"] and texts["published"] not in PUBLISHED:
        near = nearest(texts["published"], PUBLISHED, 3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise InputError(f"published {texts['published']!r} is not a published row{hint}")
    fields = *COLUMNS, *RETRIEVAL_COLUMNS, *SEARCH_COLUMNS, "num_images"
    numbers = {field: row[field] for field in fields if row.get(field) is not None}
    for field, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _LARGEST:
            raise InputError(f"{field} must be a finite number, found {json.dumps(number)}")
    published = texts.pop("published")
    entry = {"name": texts["name"], "model": texts["model"], "file": str(path)}
    entry |= {"num_images": numbers.pop("num_images", None), "metrics": numbers}
    if published:
        entry["difference"] = difference(numbers, published)
    measured[published].append(entry)
