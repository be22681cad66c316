"""Damaged annotations, tables and COCO files of labels, data sets prepared from them, and photos to annotate."""

import functools
import json
import os
import random
from pathlib import Path

import numpy as np

from aia_jax.data.annotation.annotations import read_annotations, read_labels
from aia_jax.data.annotation.datasets import CUSTOM_STATS, load_split, read_channel_stats
from aia_jax.data.image_decoding import decode_image
from aia_jax.data.importing.label_tables import read_table
from aia_jax.data.importing.labelled_photos import merge_label_rows, read_coco
from aia_jax.data.photo_folder import read_photos
from aia_jax.utils.errors import InputError
from tests.soak import plain
from tests.soak.fuzz_images import SIZE, seeds
from tests.soak.mutation import damaged, damaged_json, damaged_lines, write_damaged, write_with_damage
from tests.soak.plain import NOTHING

LABELS = ("sky", "water", "tree", "teddy bear", "日本", "<b>")
_SAMPLES = [{"image_name": f"{number}.jpeg", "image_labels": list(LABELS[number : number + 2])} for number in range(4)]
_REFERENCE = {"labels": list(LABELS), "samples": _SAMPLES}
_PHOTOS = 24  # of a split or folder
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


def authors(rng: random.Random, folder: Path) -> None:
    """`train.json` in the layout of the reference implementation."""
    path = folder / "Corel-5k" / "train.json"
    path.parent.mkdir()
    data = write_damaged(path, _REFERENCE, rng)
    _same_annotations(folder, "corel5k", plain.annotations_of(plain.json_of(data)), path)


def ssgrl(rng: random.Random, folder: Path) -> None:
    """SSGRL's three files, one of them damaged."""
    place = folder / "VG-500"
    (place / "VG_100K").mkdir(parents=True)
    names = [sample["image_name"] for sample in _SAMPLES]
    files = {
        "train_list_500.txt": ("\n".join(names) + "\n").encode(),
        "vg_category_500_labels_index.json": json.dumps({name: [n, n + 1] for n, name in enumerate(names)}).encode(),
        "vg500_vocabulary.txt": ("\n".join(LABELS) + "\n").encode(),
    }
    broken = write_with_damage(files, place, rng)
    listed, index, vocabulary = files.values()
    _same_annotations(folder, "vg500", _ssgrl_of(listed, index, vocabulary), place / broken)


def labels(rng: random.Random, folder: Path) -> None:
    """A file of labels, as lines or JSON."""
    path = folder / "labels"
    document = rng.choice((None, list(LABELS), _REFERENCE))
    data = damaged_lines(list(LABELS), rng) if document is None else damaged_json(document, rng)
    path.write_bytes(data)
    plain.compare(_labels_of(data), lambda: list(read_labels(path)), path)


def preparation(rng: random.Random, folder: Path) -> None:
    """The prepared copy of a split with mostly damaged photos."""
    names, contents = _photos(folder / "Corel-5k" / "images", rng)
    samples = [{"image_name": name, "image_labels": []} for name in names]
    (folder / "Corel-5k" / "train.json").write_text(json.dumps({"labels": LABELS, "samples": samples}))
    expected = {name: pixels for name, data in contents.items() if (pixels := _decoded(data, False)) is not None}
    with plain.may_refuse("no image can be used", right=not expected):
        split = load_split(_data_config(folder), "train", SIZE)
    assert list(split.image_names) == [name for name in names if name in expected]
    for name, pixels in zip(split.image_names, split.images[:], strict=True):
        np.testing.assert_array_equal(pixels, expected[name], name)


def prediction(rng: random.Random, folder: Path) -> None:
    """Photos read ahead and annotated. A damaged photo does not influence the others."""
    names, contents = _photos(folder / "photos", rng)
    paths = [folder / "photos" / name for name in names]
    expected = [_decoded(contents[name], True) for name in names]
    for photo, pixels in zip(read_photos(paths, SIZE, num_workers=0, upright=True), expected, strict=True):
        assert bool(photo.problem) == (pixels is None), photo.problem
        np.testing.assert_array_equal(photo.image, 0 if pixels is None else pixels)
    model, side = annotator(), rng.choice((0, SIZE))
    found = [photo for batch in model.annotate(paths, 0, picture_side=side) for photo in batch]
    whole = [path for path, pixels in zip(paths, expected, strict=True) if pixels is not None]
    alone = iter(model(whole).labels if whole else ())
    for photo, pixels in zip(found, expected, strict=True):
        if pixels is None:
            assert isinstance(photo, str)
            assert photo
        else:
            one = dict(next(alone))
            assert dict(photo.labels).keys() == one.keys()
            np.testing.assert_allclose([score for _, score in photo.labels], list(one.values()), atol=1e-6)
            assert bool(photo.picture) == bool(side)
    if not whole:
        raise plain.Refused


def tables(rng: random.Random, folder: Path) -> None:
    """A table. The result has existing photos, with labels from the table."""
    path = folder / "labels.csv"
    lines = rng.choice(_TABLES)
    data = write_damaged(path, lines, rng)
    with plain.may_refuse(path, right=data.decode(errors="replace") != "\n".join([*lines, ""])):
        found = read_table(path)
    _gathered(folder, found.rows, plain.text_of(data))


def coco(rng: random.Random, folder: Path) -> None:
    """COCO's JSON, likewise."""
    path = folder / "instances.json"
    data = write_damaged(path, _COCO, rng)
    document = plain.json_of(data)
    with plain.may_refuse(path, right=data != json.dumps(_COCO).encode()):
        found = read_coco(path)
    names = [entry["name"] for entry in document["categories"] if isinstance(entry, dict) and "name" in entry]
    _gathered(folder, found.rows, "\n".join(name for name in names if isinstance(name, str)))


def channel_stats(rng: random.Random, folder: Path) -> None:
    """Mean and standard deviation of the channels."""
    path = folder / CUSTOM_STATS
    data = write_damaged(path, {"mean": [0.5, 0.25, 0], "std": [0.2, 0.1, 1]}, rng)
    with plain.may_refuse(path):
        stats = read_channel_stats(folder)
    document = plain.json_of(data)
    assert [list(values) for values in stats] == [document["mean"], document["std"]]
    assert all(0 <= number <= 1 for values in stats for number in values)
    assert min(stats[1]) > 0


def _same_annotations(root: Path, dataset: str, expected: object, path: Path) -> None:
    with plain.may_refuse(path.parent, right=expected is NOTHING):
        found = read_annotations(root, dataset, "train")
    assert expected is not NOTHING, "accepted"
    assert (list(found.labels), list(found.image_names), found.targets.tolist()) == expected
    assert found.targets.dtype == np.uint8
    for photo in found.image_paths:
        assert os.path.normpath(photo).startswith(f"{path.parent}{os.sep}"), photo


def _ssgrl_of(listed: bytes, index: bytes, vocabulary: bytes) -> object:
    texts = [plain.text_of(data) for data in (listed, vocabulary)]
    document = plain.json_of(index)
    if NOTHING in texts or not isinstance(document, dict):
        return NOTHING
    names, words = ([line.strip() for line in text.splitlines() if line.strip()] for text in texts)
    samples = []
    for name in names:
        numbers = document.get(name)
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < len(words) for n in numbers):
            return NOTHING
        samples.append({"image_name": name, "image_labels": [words[number] for number in numbers]})
    return plain.annotations_of({"labels": words, "samples": samples})


def _labels_of(data: bytes) -> object:
    text = plain.text_of(data)
    if text is NOTHING:
        return NOTHING
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if text.lstrip()[:1] in ("{", "["):
        document = plain.json_of(data)
        found = document.get("labels") if isinstance(document, dict) else document
    good = isinstance(found, list) and found and all(map(plain.is_label, found)) and len(set(found)) == len(found)
    return found if good else NOTHING


def _photos(folder: Path, rng: random.Random) -> tuple[list[str], dict[str, bytes]]:
    folder.mkdir(parents=True)
    contents = {f"{number}.jpg": damaged(rng.choice(seeds()), rng) for number in range(_PHOTOS)}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return list(contents), contents


def _decoded(data: bytes, upright: bool) -> np.ndarray | None:
    """The pixels that the family `images` compares with Pillow, or None."""
    try:
        return decode_image(data, SIZE, upright=upright)
    except InputError:
        return None


def _data_config(folder: Path) -> object:
    from ml_collections import ConfigDict

    fields = {"name": "corel5k", "root": str(folder), "cache_dir": str(folder / "cache")}
    return ConfigDict({**fields, "skip_corrupt": True, "num_workers": 0})


@functools.cache
def annotator() -> object:
    """A small annotator with random weights."""
    import tempfile

    import aia_jax
    from tests.helpers.untrained import annotator_config, write_run

    with tempfile.TemporaryDirectory() as folder:
        workdir = write_run(Path(folder) / "run", annotator_config(**{"data.image_size": SIZE}))
        model = aia_jax.load(workdir, batch_size=8)
    model(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    return model


def _gathered(folder: Path, rows: tuple, text: str) -> None:
    photos, problems = folder / "photos", []
    for name in _NAMES:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"photo")
    for photo in merge_label_rows(rows, photos, None, problems):
        assert os.path.normpath(photo.photo) in _NAMES, photo
        assert all(plain.is_label(label) and label in text for label in photo.labels), photo
    assert all(isinstance(problem, str) for problem in problems)
    if problems:
        raise plain.Refused
