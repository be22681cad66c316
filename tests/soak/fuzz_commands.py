"""Damaged command lines, and runs with a damaged file."""

import ast
import contextlib
import functools
import json
import math
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import aia_jax
from aia_jax.inference.annotator import PhotoAnnotator
from aia_jax.utils.config import read_config
from aia_jax.utils.config_fields import flatten
from tests.helpers.untrained import annotator_config, write_run
from tests.soak import plain
from tests.soak.fuzz_images import SIZE
from tests.soak.mutation import TOKENS, damaged, damaged_json
from tests.soak.process import REPOSITORY

_IMAGE = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)
_CONFIGS = ("demo.py", "demo_retrieval.py", "demo_search.py", "corel5k.py", "improved_loss.py:corel5k", "amc.py:coco")
_WORDS = ("8", "-3", "0.5", "1e3", "True", "false", "'x'", "(1, 2)", "[1", "None", "nan", "{}", "1,2", "()", "inf", "")


def overrides(rng: random.Random, folder: Path) -> None:
    """`--config.field=value` with odd fields and values. No field may get a value that was not given."""
    name = rng.choice(_CONFIGS)
    fields, given = _fields(name), {}
    for field in rng.sample(sorted(fields), rng.choice((1, 1, 2))):
        value = rng.choice((*_WORDS, rng.choice(TOKENS).decode(errors="surrogateescape")[:200], str(fields[field])))
        spelt = damaged(field.encode(), rng).decode(errors="surrogateescape") if rng.random() < 0.3 else field
        given |= [f"{spelt}={value}".split("=", 1)]  # Damage may add an equals sign to the field.
    arguments = [f"--config.{field}={value}" for field, value in given.items()]
    (folder / "arguments.json").write_text(json.dumps([name, arguments]))
    with plain.may_refuse():
        after = _fields(name, arguments)
    for field, value in after.items():
        expected = _parsed(given[field], fields[field]) if field in given else [fields[field]]
        assert any(value == one and type(value) in (type(one), float) for one in expected), (field, value, given)


def runs(rng: random.Random, folder: Path) -> None:
    """A run with one damaged file. It is refused, or its annotator gives the same scores."""
    source, model = run()
    workdir = shutil.copytree(source, folder / "run")
    files = sorted(path for path in workdir.rglob("*") if path.is_file())
    documents = [path for path in files if plain.json_of(path.read_bytes()) is not plain.NOTHING]
    broken = rng.choice([*files, *documents])
    data = broken.read_bytes()
    changed = damaged_json(json.loads(data), rng) if broken in documents else damaged(data, rng)
    broken.write_bytes(changed)
    with plain.may_refuse("config.", workdir, right=changed != data):
        found = aia_jax.load(workdir, batch_size=8)(_IMAGE).scores
    if broken.name != "config.json":
        np.testing.assert_array_equal(found, model(_IMAGE).scores)


def _fields(config: str, arguments: Sequence[str] = ()) -> dict[str, Any]:
    return flatten(read_config(f"{REPOSITORY}/configs/{config}", arguments).to_dict())


def _parsed(text: str, default: Any) -> list[Any]:
    """The possible values of a text for a field with the type of `default`."""
    found: list[Any] = [text] if isinstance(default, str) or default is None else []
    readers = (
        ast.literal_eval,
        int,
        float,
        lambda text: int(text, 0),
        lambda text: tuple(ast.literal_eval(f"({text},)")),
    )
    for read in readers:
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found.append(read(text))
    found = [value for value in found if not isinstance(value, float) or math.isfinite(value)]
    found += {"true": [True], "false": [False], "1": [True], "0": [False]}.get(text.lower(), [])
    if isinstance(default, tuple):
        found = [value if isinstance(value, tuple) else (value,) for value in found]
        return [value for value in found if all(type(number) is int and number > 0 for number in value)]
    kinds = (int, float) if isinstance(default, float) else object if default is None else type(default)
    return [value for value in found if isinstance(value, kinds)]


@functools.cache
def run() -> tuple[Path, PhotoAnnotator]:
    """A run with random weights, and its annotator."""
    workdir = write_run(Path(tempfile.mkdtemp(prefix="fuzz-run-")), annotator_config(**{"data.image_size": SIZE}))
    thresholds = dict.fromkeys(aia_jax.load(workdir).labels, 0.25)
    (workdir / "thresholds.json").write_text(json.dumps(thresholds))
    return workdir, aia_jax.load(workdir, batch_size=8)
