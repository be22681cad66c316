import random

import pytest

from tests.soak import fuzz


@pytest.mark.parametrize("family", sorted(fuzz.FAMILIES.keys() - {*fuzz.TRAINED, "environments"}))
def test_damaged_files_are_refused_or_read_correctly(tmp_path, family):
    report = fuzz.soak(tmp_path, family, fuzz.FAMILIES[family], cases=96, seed=3)
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
    report = fuzz.soak(tmp_path / "cases", "wrong", case, cases=12, seed=0, keep=tmp_path / "kept")
    assert report["accepted"] > 0
    assert report["accepted"] + len(report["findings"]) == 12
    lines = {finding["what"].strip().splitlines()[-1] for finding in report["findings"]}
    assert lines == {"KeyError: 'a bug'", "tests.soak.fuzz.TooLong: not over after 0.05 s"}
    kept = {path.parent.name for path in (tmp_path / "kept").rglob("input")}
    assert kept == {f"wrong-{finding['case']}" for finding in report["findings"]}


def test_a_case_with_too_much_memory_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "MOST_BYTES", -1)
    report = fuzz.soak(tmp_path, "large", lambda rng, folder: None, cases=1, seed=0)
    assert "MB" in report["findings"][0]["what"]
