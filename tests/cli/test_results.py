"""`aia results`: what is printed, what is written, what is refused."""

import json
from pathlib import Path

import pytest

from aia_jax.cli.main import main
from aia_jax.metrics.published_results import RESULTS, RETRIEVAL_RESULTS, SEARCH_RESULTS

NUM_PUBLISHED = len(RESULTS) + len(RETRIEVAL_RESULTS) + len(SEARCH_RESULTS)
BEST = {
    "name": "best epoch (14, ema)",
    "published": "improved_loss/corel5k+mcc",
    "model": "tresnet_m + linear at 448 px",
    "precision": 0.5,
    "recall": 0.25,
    "f1": 0.3333,
    "n_plus": 180,
    "map": 45.125,
    "num_images": 499,
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty current directory, and a way to put results files below its `runs`."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, document) -> None:
        path = tmp_path / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document if isinstance(document, str) else json.dumps(document))

    return write


def test_a_measured_row_stands_below_its_published_one(runs, capsys):
    runs("corel/evaluation/metrics.json", {"rows": [BEST], "other": 1})
    assert main(["results"]) == 0
    out, err = capsys.readouterr()
    lines = out.split("\n")
    start = lines.index("improved_loss, corel5k")
    assert lines[start : start + 7] == [
        "improved_loss, corel5k",
        "  published                                0.4660   0.5540   0.5060      189",
        "    not measured",
        "  published, MCC thresholds                0.4840   0.5630   0.5200      191",
        "    best epoch (14, ema)                   0.5000   0.2500   0.3333      180    45.12",
        "      difference                          +0.0160  -0.3130  -0.1867      -11",
        "      tresnet_m + linear at 448 px; 499 images; runs/corel/evaluation/metrics.json",
    ]
    assert out.count("not measured") == NUM_PUBLISHED - 1
    assert "1 measured rows found in runs" in out
    assert err == ""


def test_each_task_has_a_table_with_rows_without_a_published_one_last(runs, capsys):
    row = {"name": "best epoch (3, raw)", "published": "vsl/f30k/saf", "model": "SAF", "i2t_r1": 70.0, "rsum": 480.0}
    others = [{"name": "on my photos", "t2i_r10": 12.5}, {"name": "last epoch", "published": "", "f1": 0.5}]
    search = {"name": "red boats", "ndcg_10": 0.25, "auc": 0.75}
    runs("f30k/evaluation/metrics.json", {"rows": [row, *others, search]})
    assert main(["results"]) == 0
    annotation, rest = capsys.readouterr().out.split("retrieval: recalls in per cent")
    retrieval, search = rest.split("search: as fractions")
    assert "on my photos" not in annotation + search
    lines = annotation.split("no published row\n")[1].split("\n")
    assert lines[0].split() == ["last", "epoch", "0.5000"]
    assert lines[1] == "      runs/f30k/evaluation/metrics.json"
    assert search.split("red boats")[1].split()[:2] == ["0.2500", "0.7500"]
    lines = retrieval.split("\n")
    start = lines.index("vsl, f30k, saf")
    assert lines[start + 1].split()[1:] == ["75.9", "93.9", "97.5", "57.9", "82.7", "88.9", "496.8"]
    assert lines[start + 2].split()[-2:] == ["70.0", "480.0"]
    assert lines[start + 3].split() == ["difference", "-5.9", "-16.8"]
    assert lines[lines.index("no published row") + 1].split() == ["on", "my", "photos", "12.5"]


@pytest.mark.parametrize(
    ("documents", "where"),
    [({}, "no folder"), ({"old": {"f1": 0.5}, "list": [BEST], "number": 3, "null": None}, "runs")],
)
def test_without_results_every_row_is_not_measured(runs, capsys, documents, where):
    for name, document in documents.items():
        runs(f"{name}.json", document)
    assert main(["results"]) == 0
    out, err = capsys.readouterr()
    assert out.count("  published ") + out.count("  published,") == out.count("not measured") == NUM_PUBLISHED
    assert f"0 measured rows found in {where}" in out
    assert err == ""


def test_both_default_folders_and_given_ones_are_searched_once(runs, capsys):
    runs("a.json", {"rows": [BEST]})
    runs("../benchmarks/results/b.json", {"rows": [BEST]})
    runs("../elsewhere/c.json", {"rows": [BEST]})
    main(["results"])
    assert "2 measured rows found in runs, benchmarks/results" in capsys.readouterr().out
    main(["results", "elsewhere", "runs", "."])
    assert "3 measured rows found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "runs/bad.json is not JSON"),
        ({"rows": 3}, "runs/bad.json: rows must be a list"),
        ({"rows": [3]}, "runs/bad.json: rows[0]: must be an object"),
        ({"rows": [BEST | {"published": "improved_loss/corel"}]}, "nearest: improved_loss/corel5k"),
        ({"rows": [BEST | {"name": ""}]}, 'rows[0]: name must be one line of text, found ""'),
        ({"rows": [BEST | {"model": "a\nb"}]}, 'rows[0]: model must be one line of text, found "a\\nb"'),
        ({"rows": [BEST | {"f1": "high"}]}, 'rows[0]: f1 must be a finite number, found "high"'),
        ({"rows": [BEST | {"f1": float("nan")}]}, "rows[0]: f1 must be a finite number, found NaN"),
        ({"rows": [BEST | {"map": True}]}, "rows[0]: map must be a finite number, found true"),
    ],
)
def test_unusable_rows_are_named_and_the_others_shown(runs, capsys, document, message):
    runs("bad.json", document)
    runs("good.json", {"rows": [BEST]})
    assert main(["results"]) == 0
    out, err = capsys.readouterr()
    assert "1 measured rows found" in out
    assert message in err


def test_json_holds_the_same(runs, capsys):
    runs("a.json", {"rows": [BEST, {"name": "x", "published": "", "f1": 0.5}]})
    assert main(["results", "--json", "out/table.json"]) == 0
    document = json.loads(Path("out/table.json").read_text())
    assert [row["name"] for row in document["results"]] == [*RESULTS, *RETRIEVAL_RESULTS, *SEARCH_RESULTS]
    rows = {row["name"]: row["published"] for row in document["results"]}
    assert rows["improved_loss/corel5k+mcc"] == {"precision": 0.484, "recall": 0.563, "f1": 0.52, "n_plus": 191}
    measured = {
        "name": "best epoch (14, ema)",
        "model": "tresnet_m + linear at 448 px",
        "file": "runs/a.json",
        "num_images": 499,
        "metrics": {"precision": 0.5, "recall": 0.25, "f1": 0.3333, "n_plus": 180, "map": 45.125},
        "difference": {"precision": 0.5 - 0.484, "recall": 0.25 - 0.563, "f1": 0.3333 - 0.52, "n_plus": -11},
    }
    found = {row["name"]: row["measured"] for row in document["results"] if row["measured"] != []}
    assert found == {"improved_loss/corel5k+mcc": [measured]}
    assert document["no_published_row"] == [
        {"name": "x", "model": "", "file": "runs/a.json", "num_images": None, "metrics": {"f1": 0.5}}
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "error: none is no folder; name folders that hold results, such as runs\n"),
        (["--json", "runs"], "error: --json runs is a folder; name a file\n"),
        (["--json", "runs/file/table.json"], "error: runs/file"),
    ],
)
def test_unusable_folders_and_files_are_refused(runs, capsys, arguments, message):
    runs("file", "")
    assert main(["results", *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)
