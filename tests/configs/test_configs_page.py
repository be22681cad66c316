"""`docs/configs.md` names every field of every config, with its default, and no other."""

import re
import runpy
from pathlib import Path

import pytest

from aia_jax.utils.config import FIELDS, flatten
from configs.amc import search_config
from configs.base import annotation_config
from configs.sgraf import retrieval_config

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEMS = {
    "annotation": annotation_config("corel5k"),
    "retrieval": retrieval_config("f30k_precomp", "saf"),
    "search": search_config("corel5k"),
}


@pytest.fixture(scope="module")
def rows():
    """Field to its cells: one for each system, and the meaning."""
    page = (REPOSITORY / "docs" / "configs.md").read_text()
    found = re.findall(r"^\| `([\w.]+)` \| (.*) \| (.*) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert len({field for field, *_ in found}) == len(found)
    return {field: cells for field, *cells in found}


def test_defaults_are_those_of_the_configs(rows):
    for column, config in enumerate(SYSTEMS.values()):
        told = {field: cells[column] for field, cells in rows.items() if cells[column] != "-"}
        assert told == {field: f"`{value!r}`" for field, value in flatten(config.to_dict()).items()}


def test_every_field_of_every_config_is_there_and_no_other(rows):
    fields = set()
    for path in sorted((REPOSITORY / "configs").glob("*.py")):
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config:
            fields |= set(flatten(get_config().to_dict()))
    assert set(rows) == fields | {field for config in SYSTEMS.values() for field in flatten(config.to_dict())}
    assert all(meaning.strip() for *_, meaning in rows.values())


def test_the_fields_that_a_continued_run_may_change_are_named():
    page = (REPOSITORY / "docs" / "configs.md").read_text()
    named = page[page.index("It is continued only with") : page.index("\n## Run")]
    assert set(re.findall(r"`([\w.]+)`", named)) == {name for name, field in FIELDS.items() if field.resumable}
