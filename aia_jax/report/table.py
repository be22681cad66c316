"""Formats metrics as a plain-text table with the same columns as in the papers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

COLUMNS = {"precision": "P", "recall": "R", "f1": "F1", "n_plus": "N+", "map": "mAP"}
RETRIEVAL_COLUMNS = {
    "i2t_r1": "i2t R@1",
    "i2t_r5": "R@5",
    "i2t_r10": "R@10",
    "t2i_r1": "t2i R@1",
    "t2i_r5": "R@5",
    "t2i_r10": "R@10",
    "rsum": "sum",
}
SEARCH_COLUMNS = {
    "ndcg_5": "NDCG@5",
    "ndcg_10": "@10",
    "ndcg_25": "@25",
    "mrr": "MRR",
    "r1": "R@1",
    "r10": "R@10",
    "median_rank": "med.",
    "auc": "AUC",
}

_FORMATS = {"median_rank": ".1f", "n_plus": ".0f", "map": ".2f", **dict.fromkeys(RETRIEVAL_COLUMNS, ".1f")}
_CELL = 9
_NARROWEST, _WIDEST = 40, 72


class Row(NamedTuple):
    """One line of metrics.

    Attributes:
        name: text before the numbers.
        metrics: `{metric: value}`. The cell of a missing metric or None is blank. Metrics without a column are ignored.
        signed: whether positive values have a plus sign, for differences.
    """

    name: str
    metrics: Mapping[str, float | None]
    signed: bool = False


def metric_table(rows: Sequence[Row | str], title: str = "", columns: Mapping[str, str] = COLUMNS) -> str:
    """Formats a line with `title` and the column heads, then `rows`. A string in `rows` becomes a line of text.

    The column of names has the width of the longest name, but at least 40 and at most 72 characters. A name with more
    than 72 characters is on a separate line above the numbers.
    """
    names = [title, *(row.name for row in rows if isinstance(row, Row))]
    width = max([_NARROWEST, *(len(name) for name in names if len(name) <= _WIDEST)])
    lines = _line(title, "".join(f"{head:>{_CELL}}" for head in columns.values()), width)
    for row in rows:
        lines += [row] if isinstance(row, str) else _line(row.name, _cells(row, columns), width)
    return "\n".join(line.rstrip() for line in lines)


def _line(name: str, cells: str, width: int) -> list[str]:
    return [f"{name:<{width}}{cells}"] if len(name) <= width else [name, " " * width + cells]


def _cells(row: Row, columns: Mapping[str, str]) -> str:
    cells = []
    for metric in columns:
        value = row.metrics.get(metric)
        spec = f"{'+' * row.signed}{_CELL}{_FORMATS.get(metric, '.4f')}"
        cells.append(" " * _CELL if value is None else f"{value:{spec}}")
    return "".join(cells)
