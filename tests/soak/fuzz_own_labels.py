"""Damaged tables and COCO files of labels, and channel statistics."""

import json
import os
import random
from pathlib import Path

from aia_jax.data.annotation.datasets import CUSTOM_STATS, read_channel_stats
from aia_jax.data.importing.label_lists import read_coco
from aia_jax.data.importing.label_tables import read_table
from aia_jax.data.importing.labelled_photos import merge_label_rows
from aia_jax.utils.errors import InputError
from tests.soak import plain
from tests.soak.mutation import damaged_json, damaged_lines

_NAMES = ("a.jpg", "sub/b.jpg", "日本.jpg")
_TABLES = (
    ["image,labels,split", "a.jpg,sky|water,train", 'sub/b.jpg,"teddy bear",test', "日本.jpg,,train"],
    ["file\tlabel", "a.jpg\tsky", "a.jpg\twater", "sub/b.jpg\ttree"],
    ["image,sky,water", "a.jpg,1,0", "sub/b.jpg,0,yes", "日本.jpg,0,0"],
    ["image,tags", "a.jpg,\"['sky', 'water']\"", "sub/b.jpg,[]"],
)
_COCO = {
    "images": [{"id": number, "file_name": name} for number, name in enumerate(_NAMES)],
    "annotations": [{"image_id": 0, "category_id": 1}, {"image_id": 1, "category_id": 2}],
    "categories": [{"id": 1, "name": "sky"}, {"id": 2, "name": "teddy bear"}],
}


def tables(rng: random.Random, folder: Path) -> str:
    """A table. The result has existing photos, with labels from the table."""
    path = folder / "labels.csv"
    lines = rng.choice(_TABLES)
    data = damaged_lines(lines, rng)
    path.write_bytes(data)
    try:
        found = read_table(path)
    except InputError as error:
        return plain.refused(error, path, right=data.decode(errors="replace") != "\n".join([*lines, ""]))
    return _gathered(folder, found.rows, plain.text_of(data))


def coco(rng: random.Random, folder: Path) -> str:
    """COCO's JSON, likewise."""
    path = folder / "instances.json"
    data = damaged_json(_COCO, rng)
    path.write_bytes(data)
    document = plain.json_of(data)
    try:
        found = read_coco(path)
    except InputError as error:
        return plain.refused(error, path, right=data != json.dumps(_COCO).encode())
    names = [entry["name"] for entry in document["categories"] if isinstance(entry, dict) and "name" in entry]
    return _gathered(folder, found.rows, "\n".join(name for name in names if isinstance(name, str)))


def channel_stats(rng: random.Random, folder: Path) -> str:
    """Mean and standard deviation of the channels."""
    path = folder / CUSTOM_STATS
    data = damaged_json({"mean": [0.5, 0.25, 0], "std": [0.2, 0.1, 1]}, rng)
    path.write_bytes(data)
    try:
        stats = read_channel_stats(folder)
    except InputError as error:
        return plain.refused(error, path)
    document = plain.json_of(data)
    assert [list(values) for values in stats] == [document["mean"], document["std"]]
    assert all(0 <= number <= 1 for values in stats for number in values)
    assert min(stats[1]) > 0
    return "accepted"


def _gathered(folder: Path, rows: tuple, text: str) -> str:
    photos, problems = folder / "photos", []
    for name in _NAMES:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"photo")
    for photo in merge_label_rows(rows, photos, None, problems):
        assert os.path.normpath(photo.name) in _NAMES, photo
        assert all(plain.is_label(label) and label in text for label in photo.labels), photo
    assert all(isinstance(problem, str) for problem in problems)
    return "refused" if problems else "accepted"


FAMILIES = {"tables": tables, "coco": coco, "channel_stats": channel_stats}
