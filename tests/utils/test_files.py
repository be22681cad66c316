"""JSON of others: whole, or refused with what is wrong and where."""

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_writable, read_json
from tests.soak import plain

TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
NUMBERS = st.integers() | st.floats() | st.integers(min_value=10**4000, max_value=10**4001)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def _same(one, other) -> bool:
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    return one == other and type(one) is type(other)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.booleans())
def test_what_is_written_is_read(tmp_path_factory, value, as_ascii):
    path = tmp_path_factory.getbasetemp() / "value.json"
    path.write_bytes(json.dumps(value, ensure_ascii=as_ascii).encode("utf-8", "surrogatepass"))
    if not as_ascii and re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
        with pytest.raises(InputError, match=r"value\.json is not UTF-8 text"):
            read_json(path, "")
    else:
        assert _same(read_json(path, ""), value)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40) | st.text('{}[]":, \\u0123456789eE+-.truefalsn\0\ufeff', max_size=30).map(str.encode))
def test_any_bytes_are_read_as_json_has_them_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.json"
    path.write_bytes(data)
    expected = plain.json_of(data)
    if expected is plain.NOTHING:
        with pytest.raises(InputError, match=r"bytes\.json"):
            read_json(path, "")
    else:
        assert _same(read_json(path, ""), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1,\n "b": [}', "is not JSON: Expecting value at line 2, column 8; expected a thing"),
        ('{"x": [{"sky": 1, "a": 0, "sky": 2}]}', "has the field 'sky' twice in one object; expected a thing"),
        ("[" * 100_000, "is nested too deeply; expected a thing"),
        ('{"a":' * 100_000, "is nested too deeply; expected a thing"),
        ("9" * 5000, "holds a number of thousands of digits; expected a thing"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(f"a.json {message}")):
        read_json(tmp_path / "a.json", "a thing")


def test_only_wanted_fields_are_kept(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [{"b": 1, "c": {"a": 2}}], "d": 3}')
    assert read_json(tmp_path / "a.json", "", fields=("a", "b")) == {"a": [{"b": 1}]}


def test_files_that_could_not_be_written_are_told_and_nothing_is_left(tmp_path):
    (tmp_path / "file").touch()
    check_writable(None, "", tmp_path / "new" / "numbers.json")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "new"]
    with pytest.raises(InputError, match="new is a folder; name a file in it"):
        check_writable(tmp_path / "new")
    with pytest.raises(InputError, match=r"numbers\.json cannot be written: "):
        check_writable(tmp_path / "file" / "numbers.json")
