"""Curves of training, from whatever records a run left."""

import json

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from aia_jax.report import curves
from aia_jax.training.metric_writer import MetricWriter, read_metrics


def records(epochs=3, ema=True):
    for epoch in range(1, epochs + 1):
        yield {"step": 10 * epoch - 5, "kind": "train", "loss": 1 / epoch, "learning_rate": 0.1 * epoch}
        for weights in ("raw", "ema")[: 1 + ema]:
            yield {
                "step": 10 * epoch,
                "kind": f"validation_{weights}",
                "epoch": epoch,
                "f1": epoch / 10 + (weights == "ema"),
            }


@pytest.fixture
def drawn(monkeypatch):
    """Points of all curves, and the texts."""
    found, texts = [], []
    plot, write = Axes.plot, curves.Page.write
    monkeypatch.setattr(Axes, "plot", lambda axes, x, y, *a, **k: found.append((x, y)) or plot(axes, x, y, *a, **k))
    monkeypatch.setattr(
        curves.Page, "write", lambda page, text, *a, **k: texts.append(text) or write(page, text, *a, **k)
    )
    return found, texts


def test_loss_rate_and_metrics_are_drawn_and_the_best_is_marked(tmp_path, drawn):
    curves.draw_curves(tmp_path / "curves.png", list(records()), "f1", best=(2, "ema"), title="demo")
    points, texts = drawn
    assert points[0] == ((5, 15, 25), (1.0, 0.5, 1 / 3))
    assert points[1][1] == pytest.approx((0.1, 0.2, 0.3))
    assert points[2] == ((1, 2, 3), (0.1, 0.2, 0.3))
    assert points[3] == ((1, 2, 3), (1.1, 1.2, 1.3))
    assert points[4] == (2, 1.2)
    assert "★ best: epoch 2, 1.2000" in texts
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 400
        assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize(
    ("given", "empty"),
    [
        ([], 3),
        ([{"step": 1, "kind": "train", "loss": float("nan"), "learning_rate": None}], 3),
        ([record for record in records(ema=False) if record["kind"] != "train"], 2),
        ([{"step": 1, "kind": "train", "loss": 1.0}], 2),
        ([{"step": 1, "kind": "test_raw", "epoch": "one", "f1": 0.5}], 3),
    ],
)
def test_what_is_missing_is_said(tmp_path, drawn, given, empty):
    curves.draw_curves(tmp_path / "curves.png", given, "f1", best=(1, "raw"))
    assert drawn[1].count("no records") == empty


def test_records_of_a_run_that_was_killed_and_continued(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 3.0})
        writer.write(2, "train", {"loss": 2.0})
    lines = tmp_path / "metrics.jsonl"
    again = json.dumps({"step": 2, "kind": "train", "loss": 1.5})
    lines.write_text(
        lines.read_text() + '{"step": 4, "kin\n[]\n{"kind": "train"}\n' + again + '\n{"step": 3, "kind": "tr'
    )
    assert read_metrics(tmp_path) == [
        {"step": 1, "kind": "train", "loss": 3.0},
        {"step": 2, "kind": "train", "loss": 1.5},
    ]
    lines.write_bytes(b"\xff\xfe\n" + lines.read_bytes())
    assert len(read_metrics(tmp_path)) == 2
    lines.unlink()
    assert read_metrics(tmp_path) == []
