"""Reads keywords of an automatic image tagger, builds their vocabulary, and lists keyword files and image ids.

The format of the files and the rules for words are those of AMC (Chen et al., CVPR 2017; github kanchen-usc/AMC_ATT).
"""

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from aia_jax.data.safe_names import name_problem
from aia_jax.data.search.keyword_records import LARGEST_ID
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import list_files, read_json, read_text, write_json
from aia_jax.utils.messages import list_problems

_COCO_FIELDS = ("images", "split", "filename", "imgid")
_COCO = '{"images": [{"split": "train", "filename": "a.jpg", "imgid": 0}, ...]}'
_TAGGING = '{"tagging": {"keywords": ["a word or more", ...]}}'


def read_keywords(path: str | Path) -> list[str]:
    """Reads the keywords from the JSON file of a tagger, `{"tagging": {"keywords": [...]}}`.

    Raises:
        InputError: the file is absent or malformed.
    """
    document = read_json(path, _TAGGING)
    tagging = document.get("tagging") if isinstance(document, dict) else None
    if not isinstance(tagging, dict) or "keywords" not in tagging:
        raise InputError(f"{path} has no tagging.keywords; expected {_TAGGING}")
    return _strings(path, "tagging.keywords", tagging["keywords"])


def analyze(keywords: Iterable[str]) -> list[str]:
    """Splits keywords into lower-case words of two or more letters. Drops English stop words. Keeps repeated words.

    The result equals that of scikit-learn's CountVectorizer(stop_words="english") for the keywords joined by spaces.
    """
    return _analyzer()(" ".join(keywords))


class KeywordVocabulary:
    """A vocabulary of V words. The id of a word is its index in `words`.

    Args:
        words: V different words.
        name: name of the vocabulary in messages, such as its file.

    Raises:
        InputError: a word is repeated.
    """

    def __init__(self, words: Iterable[str], name: str = "the vocabulary of keywords"):
        self.words = tuple(words)
        self.name = name
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            twice = next(word for number, word in enumerate(self.words) if self._ids[word] != number)
            raise InputError(f"{name}: {twice!r} is repeated; every word must have one id")

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def fit(cls, documents: Iterable[list[str]], min_count: int = 6) -> "KeywordVocabulary":
        """Builds a vocabulary of the words that occur in at least `min_count` documents.

        scikit-learn's CountVectorizer(min_df=min_count) gives the same ids. Memory holds only the different words.

        Args:
            documents: the words of each image, from `analyze`.

        Raises:
            InputError: no word occurs in `min_count` documents.
        """
        counts = Counter(itertools.chain.from_iterable(map(set, documents)))
        words = sorted(word for word, count in counts.items() if count >= min_count)
        if not words:
            raise InputError(f"no word is in the keywords of {min_count} images; give more images or a lower min_count")
        return cls(words)

    @classmethod
    def load(cls, path: str | Path) -> "KeywordVocabulary":
        """Reads a file `{"words": [...]}`, as `save` writes it.

        Raises:
            InputError: the file is absent or malformed, or a word is repeated.
        """
        expected = '{"words": [...]}, which `aia keywords` writes'
        document = read_json(path, expected)
        if not isinstance(document, dict) or not document.get("words"):
            raise InputError(f"{path} has no words; expected {expected}")
        return cls(_strings(path, "words", document["words"]), str(path))

    def save(self, path: str | Path) -> None:
        """Writes `{"words": [...]}`, atomically."""
        write_json(Path(path), {"words": self.words})

    def encode(self, words: Iterable[str]) -> np.ndarray:
        """Returns the ids of the K known words in `words`, int32 `[K]`, in the same order and with repeats."""
        ids = (self._ids.get(word) for word in words)
        return np.array([number for number in ids if number is not None], np.int32)


@dataclasses.dataclass(frozen=True)
class KeywordSplit:
    """The keyword files and the image ids of a split.

    Attributes:
        name: name of the split.
        folder: folder of the keyword files.
        names: names of N keyword files, relative to `folder` and without .json.
        ids: image ids, int32 `[N]`, without repeats.
        num_ids: the largest image id plus one; for COCO, of all images in dataset.json.
    """

    name: str
    folder: Path
    names: tuple[str, ...]
    ids: np.ndarray
    num_ids: int

    def __len__(self) -> int:
        return len(self.names)

    def paths(self) -> Iterator[Path]:
        """Yields the paths of the N keyword files."""
        return (self.folder / f"{name}.json" for name in self.names)


def clickture_split(listed: Path, folder: Path, name: str) -> KeywordSplit:
    """Reads the image paths in a list such as clickture-dev.lst. The last part of each path is the image id.

    Raises:
        InputError: the list is absent or empty, a line does not end with a number, or an id is repeated.
    """
    lines = [line.strip().strip("/") for line in read_text(listed).rstrip().split("\n")]
    if lines == [""]:
        raise InputError(f"{listed} is empty; every line must name a file whose last part is the image id")
    found = (name_problem(line) if line else "" for line in lines)  # `validate_ids` reports empty lines.
    if problems := [f"{listed}:{number}: {problem}" for number, problem in enumerate(found, start=1) if problem]:
        raise InputError(f"{listed} has {len(problems):,} invalid file name(s):{list_problems(problems)}")
    ids = (line.rpartition("/")[2] for line in lines)
    numbers = (int(text) if re.fullmatch("[0-9]{1,18}", text) else text for text in ids)
    checked = validate_ids(numbers, lambda index: f"{listed}:{index + 1}")
    return KeywordSplit(name, folder, tuple(lines), checked, int(checked.max()) + 1)


def coco_splits(dataset: Path, folder: Path) -> tuple[KeywordSplit, ...]:
    """Reads COCO's training and test images. The ids `imgid` are unique over both splits.

    Args:
        dataset: path of dataset.json, `{"images": [{"split", "filename", "imgid"}, ...]}`.
        folder: contains the folders keyword_train and keyword_test. A photo x.jpg has the keyword file x.json.

    Raises:
        InputError: the file is absent or malformed, an id is repeated, or a split has no images.
    """
    images = _coco_images(dataset)
    ids = validate_ids((image["imgid"] for image in images), lambda index: f"{dataset}: images[{index}].imgid")
    splits = []
    for name in ("train", "test"):  # the splits that have keywords
        rows = [row for row, image in enumerate(images) if image["split"] == name]
        if not rows:
            raise InputError(f"{dataset} has no image of split {name!r}; expected images of train and test")
        names = tuple(PurePosixPath(images[row]["filename"]).stem for row in rows)
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise InputError(
                f"{dataset}: two images of split {name!r} are called {twice}; each needs its own keyword file"
            )
        splits.append(KeywordSplit(name, folder / f"keyword_{name}", names, ids[rows], int(ids.max()) + 1))
    return tuple(splits)


def folder_split(folder: Path, name: str) -> KeywordSplit:
    """Lists the .json files below a folder, sorted, without hidden files. The image id is the index in this list.

    Raises:
        InputError: there is no .json file.
    """
    names = tuple(file.removesuffix(".json") for file in list_files(folder, [".json"]) if file.endswith(".json"))
    if not names:
        raise InputError(f"{folder} has no keyword files; their names must end in .json")
    return KeywordSplit(name, folder, names, np.arange(len(names), dtype=np.int32), len(names))


def validate_ids(numbers: Iterable[Any], where: Callable[[int], str]) -> np.ndarray:
    """Checks that ids of images are valid and unique, and returns them as int32 `[N]`.

    Args:
        where: function from the index of an id to its place in the file, for messages.

    Raises:
        InputError: an id is not valid or is repeated; the message lists all problems.
    """
    first_use: dict[int, int] = {}
    problems = []
    for index, number in enumerate(numbers):
        if type(number) is not int or not 0 <= number <= LARGEST_ID:
            problems.append(f"{where(index)}: {number!r:.40} is not an id, a number from 0 to {LARGEST_ID:,}")
        elif (first := first_use.setdefault(number, index)) != index:
            problems.append(f"{where(index)}: id {number} is already at {where(first)}")
    if problems:
        raise InputError(f"{len(problems):,} image(s) have no unique id:{list_problems(problems)}")
    return np.fromiter(first_use, np.int32, len(first_use))


def _coco_images(dataset: Path) -> list[dict[str, Any]]:
    document = read_json(dataset, _COCO, fields=_COCO_FIELDS)  # skips the captions, most of the file
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list) or not images:
        raise InputError(f"{dataset} has no images; expected {_COCO}")
    for number, image in enumerate(images):
        for field in _COCO_FIELDS[1:]:
            if not isinstance(image, dict) or field not in image:
                raise InputError(f"{dataset}: images[{number}] has no {field}; expected {_COCO}")
        if not isinstance(image["filename"], str):
            raise InputError(f"{dataset}: images[{number}].filename must be a string, found {image['filename']!r:.40}")
        if problem := name_problem(PurePosixPath(image["filename"]).stem):
            raise InputError(f"{dataset}: images[{number}].filename {problem}")
    return images


@functools.cache
def _analyzer() -> Callable[[str], list[str]]:
    from sklearn.feature_extraction.text import CountVectorizer  # takes a second to import

    return CountVectorizer(stop_words="english").build_analyzer()


def _strings(path: str | Path, field: str, value: object) -> list[str]:
    if not isinstance(value, list):
        raise InputError(f"{path}: {field} must be a list of strings, found {value!r:.40}")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise InputError(f"{path}: {field}[{index}] must be a string, found {item!r:.40}")
    return value
