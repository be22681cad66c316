"""Photos, and small data sets in the layout of the reference implementation."""

import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import ExifTags, Image

LABELS = ["sky", "water", "tree"]
TURNED = Image.Exif()  # the `exif` of a photo that must be turned clockwise
TURNED[ExifTags.Base.Orientation] = 6


def make_photo(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """Writes a JPEG of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, "JPEG")
    return path


def write_annotations(root: Path, samples: list, labels: list | None = None, split: str = "train") -> Path:
    """Writes `<root>/Corel-5k/<split>.json`."""
    path = root / "Corel-5k" / f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"labels": LABELS if labels is None else labels, "samples": samples}))
    return path


def make_dataset(root: Path, num_images: int = 5) -> Path:
    """Writes Corel-5k, where image i has label i % 3 and the last has none. Returns the folder of the photos."""
    names = [f"{index}.jpeg" for index in range(num_images)]
    samples = [{"image_name": name, "image_labels": [LABELS[i % 3]]} for i, name in enumerate(names)]
    samples[-1]["image_labels"] = []
    write_annotations(root, samples)
    for seed, name in enumerate(names):
        make_photo(root / "Corel-5k" / "images" / name, seed)
    return root / "Corel-5k" / "images"


def data_config(root: Path, cache: Path, **overrides: object) -> ConfigDict:
    """The fields of `config.data` for `load_split`."""
    fields = {"name": "corel5k", "root": str(root), "cache_dir": str(cache), "skip_corrupt": False, "num_workers": 0}
    return ConfigDict(fields | overrides)
