import pytest

from tests.soak.kills import soak


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    report = soak(tmp_path, kills=2, seed=1)
    assert report == {"kills": {"save": 1, "evaluation": 1, "step": 0, "preparation": 0}, "differences": []}
