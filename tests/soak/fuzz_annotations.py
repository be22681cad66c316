"""Damaged annotations, data sets prepared from them, and photos to annotate."""

import functools
import json
import os
import random
from pathlib import Path

import numpy as np

from aia_jax.data.annotation.annotations import read_annotations, read_labels
from aia_jax.data.annotation.datasets import load_split
from aia_jax.data.image_decoding import decode_image
from aia_jax.data.photo_folder import read_photos
from aia_jax.utils.errors import InputError
from tests.soak import plain
from tests.soak.fuzz_images import SIZE, seeds
from tests.soak.mutation import damaged, damaged_json, damaged_lines, write_with_damage
from tests.soak.plain import NOTHING

LABELS = ("sky", "water", "tree", "teddy bear", "日本", "<b>")
_SAMPLES = [{"image_name": f"{number}.jpeg", "image_labels": list(LABELS[number : number + 2])} for number in range(4)]
_REFERENCE = {"labels": list(LABELS), "samples": _SAMPLES}
_PHOTOS = 24  # of a split or folder


def authors(rng: random.Random, folder: Path) -> str:
    """`train.json` in the layout of the reference implementation."""
    path = folder / "Corel-5k" / "train.json"
    path.parent.mkdir()
    data = damaged_json(_REFERENCE, rng)
    path.write_bytes(data)
    return _same_annotations(folder, "corel5k", plain.annotations_of(plain.json_of(data)), path)


def ssgrl(rng: random.Random, folder: Path) -> str:
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
    return _same_annotations(folder, "vg500", _ssgrl_of(listed, index, vocabulary), place / broken)


def labels(rng: random.Random, folder: Path) -> str:
    """A file of labels, as lines or JSON."""
    path = folder / "labels"
    document = rng.choice((None, list(LABELS), _REFERENCE))
    data = damaged_lines(list(LABELS), rng) if document is None else damaged_json(document, rng)
    path.write_bytes(data)
    return plain.compare(_labels_of(data), lambda: list(read_labels(path)), path)


def preparation(rng: random.Random, folder: Path) -> str:
    """The prepared copy of a split with mostly damaged photos."""
    names, contents = _photos(folder / "Corel-5k" / "images", rng)
    samples = [{"image_name": name, "image_labels": []} for name in names]
    (folder / "Corel-5k" / "train.json").write_text(json.dumps({"labels": LABELS, "samples": samples}))
    expected = {name: pixels for name, data in contents.items() if (pixels := _decoded(data, False)) is not None}
    try:
        split = load_split(_data_config(folder), "train", SIZE)
    except InputError as error:
        return plain.refused(error, "no image can be used", right=not expected)
    assert list(split.image_names) == [name for name in names if name in expected]
    for name, pixels in zip(split.image_names, split.images[:], strict=True):
        np.testing.assert_array_equal(pixels, expected[name], name)
    return "accepted"


def prediction(rng: random.Random, folder: Path) -> str:
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
    return "accepted" if whole else "refused"


def _same_annotations(root: Path, dataset: str, expected: object, path: Path) -> str:
    try:
        found = read_annotations(root, dataset, "train")
    except InputError as error:
        return plain.refused(error, path.parent, right=expected is NOTHING)
    assert expected is not NOTHING, "accepted"
    assert (list(found.labels), list(found.image_names), found.targets.tolist()) == expected
    assert found.targets.dtype == np.uint8
    for photo in found.image_paths:
        assert os.path.normpath(photo).startswith(f"{path.parent}{os.sep}"), photo
    return "accepted"


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


FAMILIES = {"authors": authors, "ssgrl": ssgrl, "labels": labels, "preparation": preparation, "prediction": prediction}
