import pytest
from matplotlib.axes import Axes

from aia_jax.report.curves import draw_curves


def records(epochs=3, ema=True):
    for epoch in range(1, epochs + 1):
        yield {"step": 10 * epoch - 5, "kind": "train", "loss": 1 / epoch, "learning_rate": 0.1 * epoch}
        for weights in ("raw", "ema")[: 1 + ema]:
            f1 = epoch / 10 + (weights == "ema")
            yield {"step": 10 * epoch, "kind": f"validation_{weights}", "epoch": epoch, "f1": f1}


def test_loss_learning_rate_and_metric_are_plotted_and_the_best_epoch_is_marked(drawn, written, monkeypatch):
    points = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, x, y, *a, **k: points.append((x, y)) or plot(axes, x, y, *a, **k))
    image = drawn(draw_curves, list(records()), "f1", best=(2, "ema"), title="demo")
    assert points[0] == ((5, 15, 25), (1.0, 0.5, 1 / 3))
    assert points[1][1] == pytest.approx((0.1, 0.2, 0.3))
    assert points[2] == ((1, 2, 3), (0.1, 0.2, 0.3))
    assert points[3] == ((1, 2, 3), (1.1, 1.2, 1.3))
    assert points[4] == (2, 1.2)
    assert "★ best: epoch 2, 1.2000" in written
    assert min(image.shape[:2]) > 400
    assert image.std() > 10


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
def test_plots_without_records_say_so(drawn, written, given, empty):
    drawn(draw_curves, given, "f1", best=(1, "raw"))
    assert written.count("no records") == empty
