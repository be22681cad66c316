"""The formulas of the estimate, and its tables in docs/performance.md."""

import json
from pathlib import Path

import pytest

from aia_jax.utils.config import read_config
from aia_jax.utils.errors import InputError
from benchmarks import weak_scaling
from benchmarks.weak_scaling import Step, cost, read_step, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def counted(config, name):
    files = (RESULTS / f"traffic-{name}-{devices}-train.json" for devices in ("h200", "h200x8"))
    return read_step(read_config(str(ROOT / "configs" / config)), *files)


def test_a_cost_equals_a_computation_by_hand():
    step = Step(seconds=0.01, waits=10, extra_kernels=5, awaited=37e6, overlapped=1e9)
    here = cost(step, 1, 400e9)
    assert here == pytest.approx((10 * 15.2e-6, 1e-5, 1.75e-4, 1.75 * 32e6 / 370e9))
    assert here.efficiency(sum(here)) == pytest.approx(0.5)
    two = cost(step, 2, 50e9)
    assert two.latency == pytest.approx(10 * (21.92 + 10) * 1e-6)
    assert two.awaited == pytest.approx(1.75e-4 + 37e6 / 50e9)
    few = cost(step._replace(overlapped=1e6), 2, 50e9)
    assert few.gradients == pytest.approx(two.gradients / 32)


@pytest.mark.parametrize(
    ("config", "name", "bar"), [("corel5k.py", "m448", 1800), ("vg500.py", "v2l576", 560)], ids=["m", "v2_l"]
)
def test_the_page_shows_the_printed_table(config, name, bar):
    step, images = counted(config, name)
    assert table(step, images / bar) in (ROOT / "docs" / "performance.md").read_text()


def test_efficiencies_at_1024_devices_are_on_the_page(monkeypatch):
    step, _ = counted("corel5k.py", "m448")
    larger = cost(step, 128, 400e9).efficiency(4 * step.seconds)
    small_sum = weak_scaling.small_sum(1)
    monkeypatch.setattr(weak_scaling, "small_sum", lambda hosts: small_sum)
    of_a_host = cost(step, 128, 400e9).efficiency(step.seconds)
    page = (ROOT / "docs" / "performance.md").read_text()
    assert f"15 us at any scale, and the efficiency is {of_a_host:.0%}".replace("%", " %") in page
    assert f"four times the work, and the efficiency is {larger:.0%}".replace("%", " %") in page


def test_files_that_are_no_reports_are_refused():
    config, one = read_config(str(ROOT / "configs" / "corel5k.py")), RESULTS / "traffic-m448-h200-train.json"
    with pytest.raises(InputError, match=r"absent\.json cannot be read"):
        read_step(config, one, RESULTS / "absent.json")
    with pytest.raises(InputError, match=r"m448-h200-train\.json has devices 1; needed is 8"):
        read_step(config, one, one)
    with pytest.raises(InputError, match=r"train-m160-cpu\.json is not a report of benchmarks\.traffic$"):
        read_step(config, RESULTS / "train-m160-cpu.json", one)
    classifier = read_config(str(ROOT / "configs" / "improved_loss.py:corel5k"))
    with pytest.raises(InputError, match="only a TResNet with the attention head can be counted"):
        read_step(classifier, one, one)


@pytest.mark.parametrize(
    ("config", "one", "eight", "message"),
    [
        ("vg500.py", "m448-h200", "m448-h200x8", "'tresnet_m [+] attention'; needed is 'tresnet_v2_l"),
        ("corel5k.py", "m448-h200", "v2l576-h200x8", "has model 'tresnet_v2_l"),
        ("corel5k.py", "m448-v5e", "m448-h200x8", "is for TPU v5e"),
        ("corel5k.py", "m448-h200", "m448-h200x8-fsdp8", "has fsdp 8; needed is 1"),
        ("corel5k.py", "batch.json", "m448-h200x8", "has batch 1024; needed is 8 x 64"),
    ],
)
def test_reports_of_another_config_or_batch_are_refused(tmp_path, config, one, eight, message):
    changed = {**json.loads((RESULTS / "traffic-m448-h200-train.json").read_text()), "batch_size": 64}
    (tmp_path / "batch.json").write_text(json.dumps(changed))
    files = [
        tmp_path / name if name == "batch.json" else RESULTS / f"traffic-{name}-train.json" for name in (one, eight)
    ]
    with pytest.raises(InputError, match=message):
        read_step(read_config(str(ROOT / "configs" / config)), *files)
