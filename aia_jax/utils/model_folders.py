"""Finds model folders by path or name, and reads and checks their `config.json`. Imports neither JAX nor NumPy.

A model folder has the layout of a repository on the Hugging Face hub; docs/models.md describes its files.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, sha256_of_file
from aia_jax.utils.messages import nearest, printable
from aia_jax.utils.paths import local_path
from aia_jax.utils.storage import is_url
from aia_jax.utils.storage_folders import download_folder
from aia_jax.version import __version__

VERSION = 1
FORMAT = f"aia_jax model, version {VERSION}"
CONFIG, WEIGHTS, LABELS = "config.json", "model.safetensors", "labels.json"
THRESHOLDS, CARD = "thresholds.json", "README.md"
FILES = (WEIGHTS, LABELS, THRESHOLDS, CARD, CONFIG)
OPEN = "open"  # the shipped model that labels and finds photos by any words
SHIPPED = Path(__file__).parents[1] / "shipped"

_ANY_VERSION = re.compile(r"aia_jax model, version (\d+)")
_PARTS = {"task": str, "config": dict, "files": dict, "facts": dict, "packages": list}


def shipped_models() -> dict[str, Path]:
    """Returns the names and the folders of the models in this package."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{CONFIG}"))}


def find_model(given: str | os.PathLike) -> Path:
    """Returns the path of a trained model: an existing path unchanged, or else the folder of the shipped model `given`.

    Of a URL of object storage, returns the copy in the cache, after it has brought the copy up to date.

    Raises:
        InputError: neither of them exists. The message has the nearest names. Also the errors of `download_folder`.
    """
    if is_url(given):
        return download_folder(given)
    path, shipped = local_path(given), shipped_models()
    if path.exists():
        return path
    if str(given) in shipped:
        return shipped[str(given)]
    near = nearest(str(given), shipped, 3)
    hint = f", nearest: {', '.join(near)}" if near else ""
    raise InputError(
        f"{given} does not exist; name the folder of a model or a run, a file of weights, or a shipped model{hint} "
        "(`aia models` lists them)"
    )


def model_folder(given: str | os.PathLike) -> Path | None:
    """Returns the path of the model folder with the path or the shipped name `given`, or None for any other source."""
    path = Path(given)
    path = path if path.exists() else shipped_models().get(str(given), path)
    try:
        about = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(about, dict) and isinstance(about.get("format"), str)
    return path if known and _ANY_VERSION.fullmatch(about["format"]) else None


def read_about(folder: Path) -> dict[str, Any]:
    """Reads `config.json` of a model folder, and compares the digest of each file that it lists.

    Raises:
        InputError: another version of this project wrote the folder, or a file is missing or damaged.
    """
    path = folder / CONFIG
    about = read_json(path, "the description of a model")
    version = int(_ANY_VERSION.fullmatch(about["format"])[1])
    if version != VERSION:
        raise InputError(
            f"{path} was written in version {version} of the format, and this is aia_jax {__version__}, which reads "
            f"version {VERSION}: pip install --upgrade aia_jax"
        )
    wrong = [name for name, kind in _PARTS.items() if not isinstance(about.get(name), kind)]
    if not wrong and not all(isinstance(entry, dict) for entry in about["packages"]):
        wrong = ["packages"]
    if wrong:
        raise InputError(f"{path} is damaged: it lacks {', '.join(wrong)}; copy the folder again")
    for name, digest in about["files"].items():
        file = folder / Path(name).name
        if not file.is_file():
            raise InputError(f"{file} is missing, but {path} lists it; copy the complete folder")
        if sha256_of_file(file) != digest:
            raise InputError(f"{printable(str(file))} is damaged: its SHA-256 is not that in {CONFIG}; copy it again")
    return about
