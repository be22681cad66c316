"""Reads images and their queries from files: Clickture's click log, or COCO's captions as queries.

<root>/<name>/{split}_maps.npy                        feature maps of N images, [N, h, w, F] or [N, h * w, F]
<root>/<name>/keyword_record_{split}.npy              record of the keywords, from `aia keywords`
<root>/<name>/keyword_names_{split}.json              {keyword file: image id}, in the order of the feature maps
<root>/<name>/keyword_vocabulary.json                 {"words": [...]}, the vocabulary of the keywords
<root>/clickture/{split}_clicks.tsv                   lines of image id, query and number of clicks, with tabs
<root>/coco/dataset.json                              {"images": [{"imgid": 0, "sentences": [{"raw": "..."}]}]}
"""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.mapped_rows import MappedRows
from aia_jax.data.search.keyword_records import read_keyword_record
from aia_jax.data.search.keywords import KeywordVocabulary, validate_ids
from aia_jax.data.search.queries import SearchImages, make_queries
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, read_text

LAYOUTS = ("clickture", "coco")

_CAPTIONS = '{"images": [{"imgid": 0, "sentences": [{"raw": "a dog"}]}]}'
_IDS = "{file: id}, as aia keywords writes it"


class ClickedImages:
    """Loads the splits of a data set in the layout of this module's docstring. `config` is the config of a run."""

    def __init__(self, config: ConfigDict):
        self._data = config.data
        self._folder = Path(config.data.root) / config.data.name
        self.caveat = self.digest = ""  # The source of the maps is unknown.

    @functools.cached_property
    def keyword_names(self) -> tuple[str, ...]:
        """The keywords, ordered by id."""
        return KeywordVocabulary.load(self._folder / "keyword_vocabulary.json").words

    def load(self, name: str) -> SearchImages:
        """Loads the images of the split "train", "validation" or "test", and the queries for these images.

        Raises:
            InputError: a file is absent or malformed, or the files are not for the same images.
        """
        maps = _maps(self._folder / f"{name}_maps.npy")
        ids = _ids(self._folder / f"keyword_names_{name}.json")
        if len(ids) != len(maps):
            raise InputError(f"{maps.path} holds maps of {len(maps):,} images, but {len(ids):,} have keywords")
        pairs = self._captions() if self._data.name == "coco" else _clicks(self._folder / f"{name}_clicks.tsv")
        rows = {int(image): row for row, image in enumerate(ids)}
        found: dict[str, set[int]] = defaultdict(set)  # from the text of a query to the rows of its images
        for image, text in pairs:
            if image in rows:
                found[text].add(rows[image])
        if not found:
            raise InputError(f"no query in {self._folder} is for an image of the split {name!r}")
        record = self._folder / f"keyword_record_{name}.npy"
        keywords = read_keyword_record(record, ids, self._data.max_keywords, len(self.keyword_names))
        return SearchImages(maps, *keywords, make_queries(found, len(rows)))

    def _captions(self) -> Iterator[tuple[int, str]]:
        path = self._folder / "dataset.json"
        document = read_json(path, _CAPTIONS, fields=("images", "imgid", "sentences", "raw"))
        try:
            for image in document["images"]:
                for sentence in image["sentences"]:
                    if type(image["imgid"]) is not int or not isinstance(sentence["raw"], str):
                        raise TypeError(f"imgid {image['imgid']!r:.40}, raw {sentence['raw']!r:.40}")
                    yield image["imgid"], sentence["raw"]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is not as expected, {_CAPTIONS}: {error!r:.200}") from None


def _maps(path: Path) -> MappedRows:
    if not path.exists():
        raise InputError(f"{path}, the maps of the images, does not exist; aia features creates it from photos")
    maps = MappedRows(path)
    cells = maps.shape[1] if len(maps.shape) == 3 else 1
    if len(maps.shape) not in (3, 4) or maps.dtype.kind != "f" or math.isqrt(cells) ** 2 != cells:
        raise InputError(
            f"{path} must be a float array [images, h, w, features], or [images, cells, features] of a square grid; "
            f"found {maps.dtype} {maps.shape}"
        )
    return maps


def _ids(path: Path) -> np.ndarray:
    document = read_json(path, _IDS)
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected {_IDS}, found a {type(document).__name__}")
    names = list(document)
    return validate_ids(document.values(), lambda index: f"{path}: {names[index]!r:.80}")


def _clicks(path: Path) -> Iterator[tuple[int, str]]:
    lines = read_text(path).rstrip("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        image, *rest = line.split("\t")
        if not re.fullmatch("[0-9]{1,18}", image) or len(rest) not in (1, 2) or not rest[0].strip():
            raise InputError(f"{path}:{number}: expected id, query and clicks with tabs between, found {line[:80]!r}")
        yield int(image), rest[0].strip()
