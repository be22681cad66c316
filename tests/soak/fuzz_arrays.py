"""Damaged array files: PyTorch's two formats, safetensors, NumPy, and folders of them."""

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from ml_dtypes import bfloat16

from aia_jax.data.retrieval.captions import feature_photo_names, load_captions, load_vocabulary
from aia_jax.data.search.clicks import ClickedImages
from aia_jax.data.search.keyword_records import read_keyword_record
from aia_jax.weights.torch_archive import write_archive
from aia_jax.weights.torch_files import read_torch_file
from tests.helpers.torch_save import torch_bytes
from tests.soak import plain
from tests.soak.fuzz_text import SCAN
from tests.soak.mutation import encoded, write_with_damage

_RECORD = np.array([[0, 1], [0, 2], [2, 0], [3, 5]], np.int32)
_ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array([7]), "b": np.ones(2, "f2")}


def weights(rng: random.Random, folder: Path) -> None:
    """A file of `torch.save`, compared with torch.load(weights_only=True) if torch is installed."""
    path = folder / "weights.pth"
    _, (state, options, _) = plain.read_damaged(path, rng.choice(_torch_seeds()), rng, read_torch_file)
    expected = _torchs(path) if importlib.util.find_spec("torch") else list(state.values())
    assert options is None or isinstance(options, dict)
    for name, value in state.items():
        assert value.dtype.kind != "f" or (value.dtype == np.float32 and np.isfinite(value).all()), name
        equal = [other for other in expected if other.dtype == value.dtype and np.array_equal(other, value)]
        assert equal, f"{name} is nowhere in what torch reads"


def safetensors(rng: random.Random, folder: Path) -> None:
    """A file of safetensors, compared with a reader of ten lines."""
    from safetensors.numpy import save

    data, (state, *_) = plain.read_damaged(folder / "weights.safetensors", save(_ARRAYS), rng, read_torch_file)
    expected = _safetensors_of(data)
    assert state.keys() == expected.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(value, expected[name], name, strict=True)
        assert value.dtype.kind != "f" or np.isfinite(value).all(), name


def records(rng: random.Random, folder: Path) -> None:
    """The record of keywords, damaged."""
    contents = {"record.npy": _RECORD}
    broken, files = write_with_damage(contents, folder, rng)
    with plain.may_refuse(folder, right=files[broken] != encoded(contents[broken])):
        ids, counts = read_keyword_record(folder / "record.npy", np.arange(100), 50, np.iinfo(np.int32).max)
    record = np.load(folder / "record.npy")
    for image, (row, count) in enumerate(zip(ids, counts, strict=True)):
        np.testing.assert_array_equal(row[:count], record[record[:, 0] == image, 1][:50])


def caption_features(rng: random.Random, folder: Path) -> None:
    """SCAN's folder of features, captions and vocabulary, and the names of the photos."""
    contents = {
        "f30k_precomp/train_ims.npy": np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4),
        "f30k_precomp/train_ims.json": {"images": ["a.jpg", "b.jpg"]},
        "vocabulary.json": SCAN,
    }
    broken, _ = write_with_damage(contents, folder, rng)
    (folder / "f30k_precomp/train_caps.txt").write_text("a dog\n" * 10)
    config = ConfigDict({"name": "f30k_precomp", "root": str(folder), "vocabulary": str(folder / "vocabulary.json")})
    with plain.may_refuse("words", folder / broken):
        split = load_captions(config, "train", load_vocabulary(config))
        names = feature_photo_names(split)
    expected = np.load(folder / "f30k_precomp" / "train_ims.npy")
    assert len(split.images) == 2
    np.testing.assert_array_equal(split.images[:], expected if len(expected) == 2 else expected[::5])
    assert names == plain.json_of((folder / "f30k_precomp" / "train_ims.json").read_bytes())["images"][:2]
    assert all(isinstance(name, str) for name in names), names


def clicks(rng: random.Random, folder: Path) -> None:
    """The folder of image search: maps, keywords, queries."""
    name = rng.choice(("clickture", "coco"))
    contents = {
        "train_maps.npy": np.arange(3 * 4 * 2, dtype=np.float32).reshape(3, 4, 2),
        "keyword_record_train.npy": _RECORD,
        "keyword_names_train.json": {"a": 0, "b": 2, "c": 3},
        "keyword_vocabulary.json": {"words": list("uvwxyz")},
        "train_clicks.tsv": ["0\tquery 0\t3", "2\tquery 2", "3\tquery 3\t1"],
        "dataset.json": {"images": [{"imgid": n, "sentences": [{"raw": f"query {n}"}]} for n in (0, 2, 3)]},
    }
    _, files = write_with_damage(contents, folder / name, rng)
    images = ClickedImages(ConfigDict({"data": {"root": str(folder), "name": name, "max_keywords": 4}}))
    with plain.may_refuse(folder):
        found = images.load("train")
    ids = list(json.loads(files["keyword_names_train.json"]).values())
    assert all(type(number) is int for number in ids), ids
    assert len(set(ids)) == len(ids), ids
    record = np.load(folder / name / "keyword_record_train.npy")
    for row, number in enumerate(ids):
        expected = record[record[:, 0] == number, 1][:4]
        np.testing.assert_array_equal(found.keywords[row, : found.counts[row]], expected)
    np.testing.assert_array_equal(found.maps[:], np.load(folder / name / "train_maps.npy"))
    source = files["dataset.json" if name == "coco" else "train_clicks.tsv"].decode("utf-8")
    assert all(text in source or json.dumps(text)[1:-1] in source for text in found.queries.texts)


def _torchs(path: Path) -> list[np.ndarray]:
    """All arrays that torch reads. An error of torch is a finding, because the product read the file.

    Reads the parts of an archive from a new archive, because torch reads wrong bytes where an archive is damaged.
    """
    import torch

    source = _archived_again(path) if path.read_bytes().startswith(b"PK") else path
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            content = torch.load(source, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            # The product skips objects of other classes, and does not compute gradients.
            if "Unsupported" not in str(error) and "require gradients" not in str(error):
                raise
            raise plain.Refused from error
    found, waiting, seen = [], [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            value = value.detach()
            found.append((value.float() if value.is_floating_point() else value).numpy())
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
    return found


def _archived_again(path: Path) -> io.BytesIO:
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(stream, "w") as target:
        for part in source.infolist():
            with contextlib.suppress(zipfile.BadZipFile):  # the product does not need this file
                target.writestr(part.filename, source.read(part))
    stream.seek(0)
    return stream


@functools.cache
def _torch_seeds() -> tuple[bytes, ...]:
    half, single = np.array([1.5], np.float16), np.ones(1, np.float32)
    state = {"module.a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "module.b": half}
    plain_state = {"a.weight": np.arange(6, dtype=np.float32), "count": np.array(7), "half": np.ones(2, bfloat16)}
    contents = [
        plain_state,
        {"state_dict": state, "epoch": 3},
        {"model": [plain_state, state, {"c": single}], "opt": argparse.Namespace(x=1), "best": 0.5},
    ]
    seeds = [torch_bytes(content, old=old) for content in contents for old in (False, True)]
    for content in contents:
        stream = io.BytesIO()
        write_archive(stream, content)
        seeds.append(stream.getvalue())
    return tuple(seeds)


def _safetensors_of(data: bytes) -> dict[str, np.ndarray]:
    kinds = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "i1", "U8": "u1", "BOOL": "?"}
    kinds |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (2, 4, 8)}
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, fact in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = fact["data_offsets"]
            value = np.frombuffer(data[start + first : start + last], kinds[fact["dtype"]]).reshape(fact["shape"])
            found[name] = value.astype(np.float32) if value.dtype.kind == "f" else value
    return found
