"""Damaged annotations, tables and COCO files of labels, data sets prepared from them, and photos to annotate."""

import os
import random
from pathlib import Path

import numpy as np

from aia_jax.data.annotation.annotations import read_annotations, read_labels
from aia_jax.data.annotation.channel_stats import CUSTOM_STATS, read_channel_stats
from aia_jax.data.annotation.datasets import load_split
from aia_jax.data.image_decoding import decode_image
from aia_jax.data.importing.label_files import read_labels_of
from aia_jax.data.importing.label_tables import read_table
from aia_jax.data.importing.labelled_photos import merge_label_rows
from aia_jax.data.photo_folder import read_photos
from aia_jax.utils.errors import InputError
from tests.helpers.photos import data_config, write_annotations
from tests.soak import plain
from tests.soak.fuzz_commands import run
from tests.soak.fuzz_images import SIZE, seeds
from tests.soak.mutation import damaged, damaged_json, damaged_lines, write_damaged, write_files, write_with_damage

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
    data = write_damaged(folder / "Corel-5k" / "train.json", _REFERENCE, rng)
    _same_annotations(folder / "Corel-5k", "corel5k", plain.annotations_of(plain.json_of(data)))


def ssgrl(rng: random.Random, folder: Path) -> None:
    """SSGRL's three files, one of them damaged."""
    names = [sample["image_name"] for sample in _SAMPLES]
    contents = {
        "train_list_500.txt": names,
        "vg_category_500_labels_index.json": {name: [number, number + 1] for number, name in enumerate(names)},
        "vg500_vocabulary.txt": list(LABELS),
    }
    (folder / "VG-500" / "VG_100K").mkdir(parents=True)
    _, files = write_with_damage(contents, folder / "VG-500", rng)
    _same_annotations(folder / "VG-500", "vg500", _ssgrl_of(*files.values()))


def labels(rng: random.Random, folder: Path) -> None:
    """A file of labels, as lines or JSON."""
    path = folder / "labels"
    document = rng.choice((None, list(LABELS), _REFERENCE))
    data = damaged_lines(list(LABELS), rng) if document is None else damaged_json(document, rng)
    path.write_bytes(data)
    plain.compare(_labels_of(data), lambda: list(read_labels(path)), path)


def preparation(rng: random.Random, folder: Path) -> None:
    """The prepared copy of a split with mostly damaged photos."""
    contents = _photos(folder / "Corel-5k" / "images", rng)
    write_annotations(folder, [{"image_name": name, "image_labels": []} for name in contents])
    expected = {name: pixels for name, data in contents.items() if (pixels := _decoded(data, False)) is not None}
    with plain.may_refuse("no image can be used", right=not expected):
        split = load_split(data_config(folder, folder / "cache", skip_corrupt=True), "train", SIZE)
    assert list(split.image_names) == list(expected)
    for name, pixels in zip(split.image_names, split.images[:], strict=True):
        np.testing.assert_array_equal(pixels, expected[name], name)


def prediction(rng: random.Random, folder: Path) -> None:
    """Photos read ahead and annotated. A damaged photo does not influence the others."""
    contents = _photos(folder / "photos", rng)
    paths = [folder / "photos" / name for name in contents]
    expected = [_decoded(data, True) for data in contents.values()]
    (_, model), side = run(), rng.choice((0, SIZE))
    read = read_photos(paths, SIZE, num_workers=0, upright=True)
    found = [photo for batch in model.annotate(paths, 0, picture_side=side) for photo in batch]
    whole = [path for path, pixels in zip(paths, expected, strict=True) if pixels is not None]
    alone = iter(model(whole).labels if whole else ())
    for one, photo, pixels in zip(read, found, expected, strict=True):
        assert bool(one.problem) == (pixels is None), one.problem
        np.testing.assert_array_equal(one.image, 0 if pixels is None else pixels)
        if pixels is None:
            assert isinstance(photo, str)
            assert photo
            continue
        scores = dict(next(alone))
        assert dict(photo.labels).keys() == scores.keys()
        np.testing.assert_allclose([score for _, score in photo.labels], list(scores.values()), atol=1e-6)
        assert bool(photo.picture) == bool(side)
    if not whole:
        raise plain.Refused


def tables(rng: random.Random, folder: Path) -> None:
    """A table. The result has existing photos, with labels from the table."""
    data, found = plain.read_damaged(folder / "labels.csv", rng.choice(_TABLES), rng, read_table)
    text = plain.text_of(data)
    _gathered(folder, found.rows, text + text.replace('""', '"'))


def coco(rng: random.Random, folder: Path) -> None:
    """COCO's JSON. The result has existing photos, with labels from the file."""
    data, found = plain.read_damaged(folder / "instances.json", _COCO, rng, read_labels_of)
    _gathered(folder, found.rows, "\n".join(plain.texts_of(plain.json_of(data))))


def channel_stats(rng: random.Random, folder: Path) -> None:
    """Mean and standard deviation of the channels."""
    given = {"mean": [0.5, 0.25, 0], "std": [0.2, 0.1, 1]}
    data, stats = plain.read_damaged(folder / CUSTOM_STATS, given, rng, lambda _: read_channel_stats(folder))
    document = plain.json_of(data)
    assert [list(values) for values in stats] == [document["mean"], document["std"]]
    assert all(0 <= number <= 1 for values in stats for number in values)
    assert min(stats[1]) > 0


def _same_annotations(folder: Path, dataset: str, expected: object) -> None:
    def read() -> tuple:
        found = read_annotations(folder.parent, dataset, "train")
        assert found.targets.dtype == np.uint8
        for photo in found.image_paths:
            assert os.path.normpath(photo).startswith(f"{folder}{os.sep}"), photo
        return list(found.labels), list(found.image_names), found.targets.tolist()

    plain.compare(expected, read, folder)


@plain.or_nothing
def _ssgrl_of(listed: bytes, index: bytes, vocabulary: bytes) -> object:
    words, document, samples = plain.lines_of(vocabulary), plain.json_of(index), []
    for name in plain.lines_of(listed):
        numbers = document[name]
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            return plain.NOTHING
        samples.append({"image_name": name, "image_labels": [words[number] for number in numbers]})
    return plain.annotations_of({"labels": words, "samples": samples})


@plain.or_nothing
def _labels_of(data: bytes) -> object:
    found = plain.lines_of(data)
    found = plain.json_of(data) if found[0][0] in "{[" else [line for line in found if line[0] != "#"]
    return plain.labels_of(found["labels"] if isinstance(found, dict) else found)


def _photos(folder: Path, rng: random.Random) -> dict[str, bytes]:
    contents = {f"{number}.jpg": damaged(rng.choice(seeds()), rng) for number in range(_PHOTOS)}
    write_files(contents, folder)
    return contents


def _decoded(data: bytes, upright: bool) -> np.ndarray | None:
    """The pixels that the family `images` compares with Pillow, or None."""
    try:
        return decode_image(data, SIZE, upright=upright)
    except InputError:
        return None


def _gathered(folder: Path, rows: tuple, text: str) -> None:
    photos, problems = folder / "photos", []
    write_files(dict.fromkeys(_NAMES, b"photo"), photos)
    for photo in merge_label_rows(rows, photos, None, problems):
        assert os.path.normpath(photo.photo) in _NAMES, photo
        assert all(plain.is_label(label) and label in text for label in photo.labels), photo
    assert all(isinstance(problem, str) for problem in problems)
    if problems:
        raise plain.Refused
