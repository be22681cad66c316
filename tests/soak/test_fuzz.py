import random

import pytest

from tests.soak import fuzz

_SLOW = {"prediction", "runs"}  # Compilation takes longer than all others together.


@pytest.mark.parametrize("family", sorted(fuzz.FAMILIES.keys() - _SLOW))
def test_damaged_files_are_refused_or_read_correctly(tmp_path, family):
    report = fuzz.soak(tmp_path, 96, seed=3, families={family: fuzz.FAMILIES[family]})[family]
    assert report["findings"] == []
    assert report["accepted"] > 0
    assert report["refused"] > 0 or family == "preparation"


def test_errors_and_endless_cases_are_found(tmp_path, monkeypatch):
    def case(rng: random.Random, folder):
        number = rng.randrange(3)
        (folder / "input").write_text(str(number))
        if number == 1:
            raise KeyError("a bug")
        while number == 2:
            pass

    monkeypatch.setattr(fuzz, "MOST_SECONDS", 0.05)
    report = fuzz.soak(tmp_path / "cases", 12, seed=0, families={"wrong": case}, keep=tmp_path / "kept")["wrong"]
    assert report["accepted"] > 0
    assert report["accepted"] + len(report["findings"]) == 12
    lines = {finding["what"].strip().splitlines()[-1] for finding in report["findings"]}
    assert lines == {"KeyError: 'a bug'", "tests.soak.fuzz.TooLong: not over after 0.05 s"}
    kept = {path.parent.name for path in (tmp_path / "kept").rglob("input")}
    assert kept == {f"wrong-{finding['case']}" for finding in report["findings"]}


def test_a_case_with_too_much_memory_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "MOST_BYTES", -1)
    report = fuzz.soak(tmp_path, 1, seed=0, families={"large": lambda rng, folder: None})["large"]
    assert "MB" in report["findings"][0]["what"]
