import pytest

from benchmarks.growth import exponents, table


def test_the_exponent_is_the_slope_between_logarithms():
    assert exponents([10, 100, 1000], [3.0, 30.0, 300.0]) == pytest.approx({"all": 1, "last_two": 1})
    assert exponents([10, 100, 1000], [2.0, 2.0, 200.0]) == pytest.approx({"all": 1, "last_two": 2})
    assert exponents([10, 100], [-1.0, 5.0]) == {"all": None, "last_two": None}


def test_the_table_has_costs_in_seconds_and_megabytes():
    rows = [
        {"step": "import", "cost": "cpu_seconds", "values": [0.5, 5.0], "exponent": {"all": 1.0, "last_two": 1.0}},
        {"step": "import", "cost": "peak_bytes", "values": [-1e6, 2e6], "exponent": {"all": None, "last_two": None}},
    ]
    lines = table({"photos": [200, 2000], "results": rows}).splitlines()
    assert [line.split() for line in lines] == [
        ["200", "2,000", "exponent", "last", "two"],
        ["import", "s", "of", "CPU", "0.50", "5.00", "1.00", "1.00"],
        ["import", "MB", "peak", "-1.00", "2.00", "-", "-"],
    ]
