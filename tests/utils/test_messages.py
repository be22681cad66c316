import pytest

from aia_jax.utils.messages import format_count


@pytest.mark.parametrize(("number", "text"), [(0, "0 labels"), (1, "1 label"), (2, "2 labels"), (2000, "2,000 labels")])
def test_only_one_is_singular(number, text):
    assert format_count(number, "label") == text
