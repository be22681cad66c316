"""Reads photos with captions: JSON lines, tables, COCO's captions in Karpathy's JSON, or SCAN's pairs of text files.

    <root>/train.jsonl  validation.jsonl  test.jsonl      {"image": "a.jpg", "caption": "a dog"}, or "captions": [...]
    <root>/train.csv  validation.csv  test.csv            image,caption
    <root>/train_images.txt  train_caps.txt  dev_...      in each line a photo, or a caption; equally many captions each
    <config.data.captions>                                one file of these kinds for all splits, or Karpathy's JSON

The photos are in `config.data.photos`, by default <root>/images if this folder exists, or else <root>.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.annotation.annotations import CUSTOM, Annotations
from aia_jax.data.annotation.datasets import validation_size
from aia_jax.data.importing.table_text import read_rows
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.data.photo_finder import PhotoFinder
from aia_jax.data.vocabulary import read_captions
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, read_text
from aia_jax.utils.messages import format_count, list_problems

_STEMS = {"train": ("train",), "validation": ("validation", "val", "dev"), "test": ("test",)}
_KARPATHY = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}
_PHOTO_KEYS = ("image", "file_name", "filename", "photo", "path")
_CAPTION_KEYS = ("caption", "captions", "text", "sentence", "sentences", "description")
_TABLES = (".csv", ".tsv")
Captions = dict[str, list[str]]  # the captions of each photo


@dataclasses.dataclass(frozen=True)
class CaptionedPhotos:
    """A split of I photos with C captions. The captions of a photo are consecutive.

    Attributes:
        images: the resized photos, uint8 `[I, S, S, 3]`, memory-mapped.
        names: names of the photos.
        captions: C texts.
        owners: index of each caption's photo, int64 `[C]`, in ascending order.
    """

    images: MappedRows
    names: tuple[str, ...]
    captions: tuple[str, ...]
    owners: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


def load_photo_captions(config_data: ConfigDict, split: str, image_size: int, seed: int) -> CaptionedPhotos:
    """Loads the split "train", "validation" or "test". The first call resizes and caches the photos.

    Args:
        config_data: `config.data`: `root`, `captions`, `photos`, `validation_fraction` and those of `prepare_copy`.
        seed: seed of the random splits of one file without splits. Validation and test split have the fraction
            `validation_fraction` of the photos each.

    Raises:
        InputError: a file is absent or malformed, or photos are unreadable.
    """
    from aia_jax.data.annotation import image_cache  # imported here, because some machines lack Grain

    root, folder = Path(config_data.root), _photo_folder(config_data)
    captions = read_photo_captions(config_data, split, seed)
    finder = PhotoFinder(folder)
    found = [finder.find(name) for name in captions]
    if problems := [problem for _, problem in found if problem]:
        raise InputError(f"{format_count(len(problems), 'photo')} cannot be used:{list_problems(problems)}")
    paths = tuple(folder / name for name, _ in found)
    annotations = Annotations((), tuple(captions), paths, np.zeros((len(captions), 0), np.uint8))
    source = image_cache.photo_source(root, CUSTOM, split, annotations)
    copy = image_cache.prepare_copy(source, config_data, image_size)
    names = tuple(json.loads((copy / "split.json").read_bytes())["image_names"])
    counts = [len(captions[name]) for name in names]
    texts = tuple(text for name in names for text in captions[name])
    return CaptionedPhotos(MappedRows(copy / "images.npy"), names, texts, np.repeat(np.arange(len(names)), counts))


def read_photo_captions(config_data: ConfigDict, split: str, seed: int) -> Captions:
    """Reads the captions of each photo of a split. Raises InputError; see `load_photo_captions`."""
    root = Path(config_data.root)
    if config_data.captions:
        path = root / config_data.captions
        if path.suffix.lower() == ".json":
            return _checked(_read_karpathy(path, split), path)
        return _random_part(_checked(_read(path), path), split, config_data.validation_fraction, seed)
    for stem in _STEMS[split]:
        if (images := root / f"{stem}_images.txt").exists():
            path = root / f"{stem}_caps.txt"
            return _checked(_read_pairs(images, path), path)
        for suffix in (".jsonl", *_TABLES):
            if (path := root / f"{stem}{suffix}").exists():
                return _checked(_read(path), path)
    stem = _STEMS[split][0]
    raise InputError(
        f"{root} has no captions of the {split} split: {stem}.jsonl, {stem}.csv, or {stem}_images.txt and "
        f"{stem}_caps.txt; config.data.captions names one file for all splits, config.data.root another folder"
    )


def _photo_folder(config_data: ConfigDict) -> Path:
    root = Path(config_data.root)
    folder = root / config_data.photos if config_data.photos else root / "images"
    if config_data.photos and not folder.is_dir():
        raise InputError(f"config.data.photos: {folder} is no folder; name the folder of the photos")
    return folder if folder.is_dir() else root


def _checked(pairs: Iterator[tuple[str, str, str]], path: Path) -> Captions:
    """Groups captions by photo. `pairs` yields the name of a photo, a caption, and its place for messages."""
    captions: Captions = {}
    for name, caption, place in pairs:
        if not name or not caption:
            raise InputError(
                f"{place}: the {'caption' if name else 'name of the photo'} is empty; complete or remove it"
            )
        captions.setdefault(name, []).append(caption)
    if not captions:
        raise InputError(f"{path} has no photo with a caption in this split")
    return captions


def _read(path: Path) -> Iterator[tuple[str, str, str]]:
    if path.suffix.lower() in _TABLES:
        yield from _read_table(path)
        return
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{place} is not JSON ({error}); each line must be an object with image and caption"
            ) from None
        if not isinstance(record, dict):
            raise InputError(f"{place} is no JSON object; each line must be an object with image and caption")
        name, found = record[_key(record, _PHOTO_KEYS, place)], record[_key(record, _CAPTION_KEYS, place)]
        for caption in found if isinstance(found, list) else [found]:
            if not isinstance(name, str) or not isinstance(caption, str):
                raise InputError(f"{place}: image and caption must be texts, found {name!r:.40} and {caption!r:.40}")
            yield name.strip(), caption.strip(), place


def _read_table(path: Path) -> Iterator[tuple[str, str, str]]:
    known = {*_PHOTO_KEYS, *_CAPTION_KEYS}
    table = read_rows(path, lambda header: sum(cell.lower() in known for cell in header), "", "")
    if table.problems:
        raise InputError(f"{len(table.problems)} rows cannot be read, such as {table.problems[0]}")
    columns = {name.lower(): number for number, name in enumerate(table.header)}
    photo, caption = (columns[_key(columns, keys, str(path))] for keys in (_PHOTO_KEYS, _CAPTION_KEYS))
    for line, cells in table.rows:
        yield cells[photo].strip(), cells[caption].strip(), f"{path}:{line}"


def _key(record: dict[str, Any], keys: tuple[str, ...], place: str) -> str:
    found = [key for key in keys if key in record]
    if len(found) != 1:
        problem = f"has {' and '.join(found)}; keep one" if found else f"has none of {', '.join(keys)}"
        raise InputError(f"{place} {problem}. Found: {', '.join(map(str, record))}")
    return found[0]


def _read_pairs(images: Path, path: Path) -> Iterator[tuple[str, str, str]]:
    names, captions = read_text(images).splitlines(), read_captions(path)
    if len(set(names)) != len(names):
        raise InputError(f"{images} names a photo twice; remove it, together with its captions in {path.name}")
    if not names or len(captions) % len(names):
        raise InputError(f"{images} has {len(names)} photos, and {path} {len(captions)} captions, no multiple of these")
    for number, caption in enumerate(captions):
        yield names[number * len(names) // len(captions)], caption, f"{path}:{number + 1}"


def _read_karpathy(path: Path, split: str) -> Iterator[tuple[str, str, str]]:
    """Reads the JSON of Karpathy & Fei-Fei (CVPR 2015), such as dataset_coco.json."""
    document = read_json(path, '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}')
    images = document.get("images") if isinstance(document, dict) else None
    try:
        for number, image in enumerate(images):
            if image["split"] in _KARPATHY[split]:
                name = str(Path(image.get("filepath", ""), image["filename"]))
                for sentence in image["sentences"]:
                    # Some sentences end with a line break.
                    yield name, " ".join(sentence["raw"].split()), f"{path}: images[{number}]"
    except (TypeError, KeyError, AttributeError):
        expected = '{"images": [{"filename": ..., "split": ..., "sentences": [{"raw": ...}]}]}'
        raise InputError(f"{path} is no file of captions in Karpathy's layout, {expected}") from None


def _random_part(captions: Captions, split: str, fraction: float, seed: int) -> Captions:
    size = validation_size(fraction, len(captions))
    order = np.random.default_rng(seed).permutation(len(captions))
    parts = {"validation": order[:size], "test": order[size : 2 * size], "train": order[2 * size :]}
    names = list(captions)
    if not len(parts["train"]):
        raise InputError(f"config.data.validation_fraction={fraction} leaves no photo for training")
    return {names[row]: captions[names[row]] for row in sorted(parts[split])}
