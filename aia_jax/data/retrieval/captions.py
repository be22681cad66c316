"""Images with five captions each: SCAN's precomputed layout, and scenes with the captions drawn beside them."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import sparse

from aia_jax.data import scenes
from aia_jax.data.annotation.datasets import FIRST_TEST_SCENE, load_split
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.data.vocabulary import Vocabulary, encode_captions, image_means, read_captions, tf_idf
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json

CAPTIONS_PER_IMAGE = 5
_DEV_CAPTIONS = 5000  # of a larger dev split, as in the published code
_FILES = {"train": ("train",), "validation": ("dev",), "test": ("testall", "test")}


@dataclasses.dataclass(frozen=True)
class CaptionSplit:
    """I images and their C = 5 I captions, those of an image one after the other.

    Attributes:
        name: "train", "validation" or "test".
        rows: of images: region features `[M, R, F]`, or uint8 `[M, S, S, 3]`, memory-mapped.
        rows_per_image: 1, or 5 where the file repeats an image for each of its captions.
        captions: C texts.
        tokens: int32 `[C, L]`, padded with 0.
        lengths: int32 `[C]`.
    """

    name: str
    rows: MappedRows
    rows_per_image: int
    captions: tuple[str, ...]
    tokens: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def num_images(self) -> int:
        """I."""
        return len(self) // CAPTIONS_PER_IMAGE

    @property
    def images(self) -> MappedRows:
        """The rows of images, `[I, ...]`, each image once."""
        return self.rows.take(np.arange(0, self.num_images * self.rows_per_image, self.rows_per_image))

    def take(self, images: np.ndarray, name: str) -> "CaptionSplit":
        """These images with their captions; no image is read."""
        captions = (CAPTIONS_PER_IMAGE * images[:, None] + np.arange(CAPTIONS_PER_IMAGE)).ravel()
        rows = (self.rows_per_image * images[:, None] + np.arange(self.rows_per_image)).ravel()
        texts = tuple(self.captions[caption] for caption in captions)
        rest = texts, self.tokens[captions], self.lengths[captions]
        return CaptionSplit(name, self.rows.take(rows), self.rows_per_image, *rest)


def load_captions(config_data: ConfigDict, split: str, vocabulary: Vocabulary) -> CaptionSplit:
    """A split of a data set.

    Args:
        config_data: `name`, "scenes" or a folder's such as "f30k_precomp"; `root`, where that folder lies.
        split: "train", "validation" ("dev" there) or "test" (all of it, "testall", where there is such a file).

    Raises:
        InputError: files absent, of a wrong shape, or that do not fit each other; words that the vocabulary lacks.
    """
    if config_data.name == "scenes":
        return _scenes(config_data, split, vocabulary)
    folder = Path(config_data.root) / config_data.name
    stem = next((name for name in _FILES[split] if _caption_file(folder, name).exists()), _FILES[split][-1])
    captions = read_captions(_caption_file(folder, stem))
    if len(captions) % CAPTIONS_PER_IMAGE:
        raise InputError(
            f"{_caption_file(folder, stem)} holds {len(captions)} captions, no multiple of {CAPTIONS_PER_IMAGE}: each "
            f"image has {CAPTIONS_PER_IMAGE}, one after the other"
        )
    rows = _features(folder / f"{stem}_ims.npy", len(captions))
    rows_per_image = len(rows) * CAPTIONS_PER_IMAGE // len(captions)
    whole = CaptionSplit(
        split,
        rows,
        rows_per_image,
        captions,
        *encode_captions(captions, vocabulary, name=str(_caption_file(folder, stem))),
    )
    if split == "validation" and len(captions) > _DEV_CAPTIONS:
        return whole.take(np.arange(_DEV_CAPTIONS // CAPTIONS_PER_IMAGE), split)
    return whole


def load_vocabulary(config_data: ConfigDict) -> Vocabulary:
    """The words of a data set: `data.vocabulary`, else `<root>/vocab/<name>_vocab.json`; those of the scenes drawn.

    Raises:
        InputError: the file is absent or not valid.
    """
    if config_data.name == "scenes":
        return Vocabulary.build(scene_captions(config_data, "train"), min_count=1)
    given = config_data.vocabulary
    path = Path(given) if given else Path(config_data.root) / "vocab" / f"{config_data.name}_vocab.json"
    if not path.exists():
        captions = _caption_file(Path(config_data.root) / config_data.name, "train")
        raise InputError(
            f"{path}, the vocabulary, does not exist; build it with: aia vocab {captions} --output {path}, "
            "or name another with config.data.vocabulary"
        )
    return Vocabulary.load(path)


def scene_captions(config_data: ConfigDict, split: str) -> tuple[str, ...]:
    """The captions of the scenes of "train" or "test"."""
    field, first = {"train": ("num_train", 0), "test": ("num_test", FIRST_TEST_SCENE)}[split]
    indices = range(first, first + config_data[field])
    # Of the smallest size: what is said of a scene does not depend on it.
    return tuple(caption for index in indices for caption in scenes.draw(config_data.seed, index, 8).captions)


class PairBatches:
    """Makes batches of captions, with their images, from their numbers.

    Captions are padded to the least of a few lengths that holds the longest of the batch, so that the step is compiled
    a few times in all. Within a batch the longest come first, as in the published code, whose running statistics
    depend on the order.

    Args:
        split: where they are from.
        lengths: rising; a longer caption is padded to the next multiple of 8.
        order: caption numbers by place; None: each place is a number.
        images: whether the images are wanted.
        meaning: what `image_similarity` and `caption_similarity` are made of: tf-idf rows of captions and their means
            over the captions of each image, sparse; None: no such columns.
    """

    def __init__(
        self,
        split: CaptionSplit,
        lengths: tuple[int, ...],
        *,
        order: np.ndarray | None = None,
        images: bool = True,
        meaning: dict[str, sparse.csr_matrix] | None = None,
    ):
        self._split, self._lengths, self._order = split, tuple(lengths), order
        self._images, self._meaning = images, meaning or {}

    def __call__(self, columns: dict[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
        """`index`, `tokens`, `length` of the captions, `image` `[b, ...]`, and `..._similarity` `[b, B]` to all B."""
        split, columns = self._split, dict(columns)
        index = columns["index"] if self._order is None else self._order[columns["index"]]
        longest_first = np.argsort(-split.lengths[index], kind="stable")
        index = index[longest_first]
        columns = {name: column[longest_first][part] for name, column in columns.items()}
        width = self._padded(int(split.lengths[index].max()))
        own = index[part]
        columns |= {"index": own.astype(np.int32), "length": split.lengths[own], "tokens": self._tokens(own, width)}
        if self._images:
            columns["image"] = split.rows[own // CAPTIONS_PER_IMAGE * split.rows_per_image]
        for name, rows in self._meaning.items():
            of = index // (len(split) // rows.shape[0])
            columns[f"{name}_similarity"] = (rows[of[part]] @ rows[of].T).toarray().astype(np.float32)
        return columns

    def _tokens(self, index: np.ndarray, width: int) -> np.ndarray:
        tokens = self._split.tokens[index, :width]
        return np.pad(tokens, [(0, 0), (0, width - tokens.shape[1])])

    def _padded(self, longest: int) -> int:
        return next((length for length in self._lengths if length >= longest), -(-longest // 8) * 8)


def by_length(split: CaptionSplit) -> np.ndarray:
    """Caption numbers, the shortest captions first."""
    return np.argsort(split.lengths, kind="stable")


def semantic_similarity(split: CaptionSplit, names: tuple[str, ...]) -> dict[str, sparse.csr_matrix]:
    """Tf-idf rows of the "caption"s and their means over each "image"'s, as far as asked for by `names`."""
    if not names:
        return {}
    rows = tf_idf(split.captions)
    made = {"caption": lambda: rows, "image": partial(image_means, rows, CAPTIONS_PER_IMAGE)}
    return {name: made[name]() for name in names}


def feature_photo_names(split: CaptionSplit) -> list[str]:
    """The file of each image, as `aia features` wrote them beside the features.

    Raises:
        InputError: it did not, or they are of another number of images.
    """
    path = split.rows.path.with_suffix(".json")
    if not path.exists():
        raise InputError(f"{path}, which names the photos of the features, does not exist; aia features writes it")
    document = read_json(path, '{"images": [...]}, the names of the photos of the features')
    names = document.get("images") if isinstance(document, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f'{path} names no photos; expected {{"images": [...]}}, as aia features writes it')
    rows = split.images.rows
    if max(rows, default=0) >= len(names):
        raise InputError(f"{path} names {len(names)} photos, fewer than there are features; make both anew")
    return [names[row] for row in rows]


def _caption_file(folder: Path, stem: str) -> Path:
    return folder / f"{stem}_caps.txt"


def _features(path: Path, num_captions: int) -> MappedRows:
    try:
        rows = MappedRows(path)
    except FileNotFoundError:
        raise InputError(f"{path}, the image features, does not exist; aia features makes it of photos") from None
    if len(rows.shape) != 3 or rows.dtype.kind != "f":
        raise InputError(f"{path} must be a float array [images, regions, features], found {rows.dtype} {rows.shape}")
    num_images = num_captions // CAPTIONS_PER_IMAGE
    if len(rows) not in (num_images, num_captions):
        raise InputError(
            f"{path} holds features of {len(rows)} images, but there are {num_captions} captions beside it: "
            f"{num_images} rows are needed, one an image, or {num_captions}, one a caption"
        )
    return rows


def _scenes(config_data: ConfigDict, split: str, vocabulary: Vocabulary) -> CaptionSplit:
    part = "test" if split == "test" else "train"
    captions = scene_captions(config_data, part)
    images = load_split(config_data, part, config_data.image_size).images
    whole = CaptionSplit(split, images, 1, captions, *encode_captions(captions, vocabulary))
    if split == "test":
        return whole
    num_validation = round(config_data.validation_fraction * whole.num_images)
    if not 0 < num_validation < whole.num_images:
        raise InputError(
            f"config.data.validation_fraction={config_data.validation_fraction} leaves {num_validation} of "
            f"{whole.num_images} images for validation; both parts need at least one"
        )
    first = whole.num_images - num_validation
    chosen = np.arange(first) if split == "train" else np.arange(first, whole.num_images)
    return whole.take(chosen, split)
