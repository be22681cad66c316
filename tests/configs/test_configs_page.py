"""docs/configs.md lists every field of every config with its defaults, values and resumability."""

import re
import runpy
from pathlib import Path

import pytest

from aia_jax.configs.amc import search_config
from aia_jax.configs.base import annotation_config
from aia_jax.configs.sgraf import retrieval_config
from aia_jax.utils.config_fields import FIELDS, Field, flatten

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEMS = [
    flatten(config.to_dict())
    for config in (
        annotation_config("corel5k"),
        retrieval_config("f30k_precomp", "saf"),
        search_config("corel5k"),
    )
]


@pytest.fixture(scope="module")
def rows():
    """The cells of each field: three defaults, values, resumability and meaning."""
    page = (REPOSITORY / "docs" / "configs.md").read_text()
    lines = re.findall(r"^\| `([\w.]+)` \|(.*)\|$", page, re.MULTILINE)
    found = {field: [cell.strip() for cell in cells.split(" | ")] for field, cells in lines}
    assert len(found) == len(lines)
    return found


def test_the_page_has_the_defaults_of_the_systems(rows):
    for column, fields in enumerate(SYSTEMS):
        listed = {field: cells[column] for field, cells in rows.items() if cells[column] != "-"}
        assert listed == {field: f"`{value!r}`" for field, value in fields.items()}


def test_the_page_has_the_fields_of_all_configs_and_no_others(rows):
    fields = set().union(*SYSTEMS)
    for path in sorted((REPOSITORY / "configs").glob("*.py")):
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config:
            fields |= set(flatten(get_config().to_dict()))
    assert set(rows) == fields
    assert all(meaning for *_, meaning in rows.values())


def test_the_page_has_the_values_and_the_resumability_of_each_field(rows):
    for name, cells in rows.items():
        field = FIELDS.get(name, Field())
        words = ", ".join(f"`{word}`" for word in field.words)
        assert cells[3:5] == [words or field.range, "yes" if field.resumable else ""], name
    assert FIELDS.keys() - rows.keys() == {"model.gate_kernels"}  # the page says that it is ignored


def test_every_number_of_a_config_has_a_range():
    numbers = {name for fields in SYSTEMS for name, value in fields.items() if type(value) in (int, float, tuple)}
    assert all(FIELDS[name].range for name in numbers)
