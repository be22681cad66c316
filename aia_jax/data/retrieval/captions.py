"""Loads images with captions: features in SCAN's format (Lee et al., ECCV 2018), or generated scenes."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import sparse

from aia_jax.data import scenes
from aia_jax.data.annotation.datasets import load_split, scene_indices, validation_size
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.data.token_outputs import TokenOutputs
from aia_jax.data.vocabulary import Vocabulary, encode_captions, image_means, read_captions, tf_idf
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json

_USUAL = 5  # captions of an image in Flickr8k, Flickr30K and COCO
_DEV_IMAGES = 1000  # number of images to use from a larger dev split, as in SCAN's code
_COMPARED = 2048  # numbers at each end of a row; a typical number of features of a region
_FILES = {"train": ("train",), "validation": ("dev",), "test": ("testall", "test")}


@dataclasses.dataclass(frozen=True)
class CaptionSplit:
    """A split of I images with C = kI captions. The k captions of an image are consecutive.

    Attributes:
        images: memory-mapped. Either features of R regions, float `[I, R, F]`, or pixels, uint8 `[I, S, S, 3]`.
        captions: C texts.
        tokens: word ids, int32 `[C, L]`, padded with 0; or outputs of a text encoder.
        lengths: number of tokens of each caption, int32 `[C]`.
    """

    images: MappedRows
    captions: tuple[str, ...]
    tokens: np.ndarray | TokenOutputs
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def per_image(self) -> int:
        """Number k of captions of each image."""
        return len(self.captions) // len(self.images)

    @property
    def owners(self) -> np.ndarray:
        """Index of each caption's image, `[C]`."""
        return np.arange(len(self.captions)) // self.per_image

    def take(self, images: np.ndarray) -> "CaptionSplit":
        """Returns a split of the images with the indices `images`, and their captions. Does not read the images."""
        captions = (self.per_image * images[:, None] + np.arange(self.per_image)).ravel()
        texts = tuple(self.captions[caption] for caption in captions)
        return CaptionSplit(self.images.take(images), texts, self.tokens[captions], self.lengths[captions])

    def padded_tokens(self, captions: np.ndarray, length: int) -> np.ndarray:
        """Returns word ids, `[b, L]`, or outputs of size D, `[b, L, D]`, cut or padded with 0 to a length L."""
        if isinstance(self.tokens, TokenOutputs):
            return self.tokens.padded(captions, length)
        tokens = self.tokens[captions, :length]
        return np.pad(tokens, [(0, 0), (0, length - tokens.shape[1])])


def load_captions(config_data: ConfigDict, split: str, vocabulary: Vocabulary) -> CaptionSplit:
    """Loads a split of a data set for image-text retrieval.

    Args:
        config_data: `config.data`. `name` is "scenes" or a folder such as "f30k_precomp" in the folder `root`.
        split: "train", "validation" (the files `dev_*`) or "test" (the files `testall_*` if they exist, else `test_*`).

    Raises:
        InputError: a file is absent or has a wrong shape, files do not match, or the vocabulary lacks most words.
    """
    if config_data.name == "scenes":
        return _load_scenes(config_data, split, vocabulary)
    folder = Path(config_data.root) / config_data.name
    stem = next((name for name in _FILES[split] if (folder / f"{name}_caps.txt").exists()), _FILES[split][-1])
    path = folder / f"{stem}_caps.txt"
    captions = read_captions(path)
    images = _features(folder / f"{stem}_ims.npy", len(captions), config_data.get("captions_per_image", 0))
    whole = CaptionSplit(images, captions, *encode_captions(captions, vocabulary, name=str(path)))
    if split == "validation" and len(images) > _DEV_IMAGES:
        return whole.take(np.arange(_DEV_IMAGES))
    return whole


def load_vocabulary(config_data: ConfigDict) -> Vocabulary:
    """Loads `config.data.vocabulary`, by default <root>/vocab/<name>_vocab.json. For "scenes", builds a vocabulary.

    Raises:
        InputError: the file is absent or not valid.
    """
    if config_data.name == "scenes":
        return Vocabulary.build(scene_captions(config_data, "train"), min_count=1)
    path = Path(config_data.vocabulary or Path(config_data.root) / "vocab" / f"{config_data.name}_vocab.json")
    if not path.exists():
        captions = Path(config_data.root) / config_data.name / "train_caps.txt"
        raise InputError(
            f"{path}, the vocabulary, does not exist; build it with: aia vocab {captions} --output {path}, "
            "or name another with config.data.vocabulary"
        )
    return Vocabulary.load(path)


def scene_captions(config_data: ConfigDict, split: str) -> tuple[str, ...]:
    """Returns the captions of all scenes in the split "train" or "test"."""
    # Captions do not depend on the size of the picture, so the pictures are very small.
    drawn = (scenes.draw(config_data.seed, index, 8) for index in scene_indices(config_data, split))
    return tuple(caption for scene in drawn for caption in scene.captions)


class PairBatches:
    """Makes batches of captions and their images.

    The captions of a batch are padded to the smallest of `lengths` that fits the longest caption. So JAX compiles the
    training step only once for each length. The captions of a batch are sorted by descending length, as in SGRAF's
    code, because the running statistics of the batch norm depend on this order.

    Args:
        split: source of the captions and images.
        lengths: allowed lengths, increasing. Longer captions are padded to a multiple of 8.
        order: `order[i]` is the index of the caption in row i; None: row i has caption i.
        images: whether to include the images.
        similarity: result of `semantic_similarity`. The columns `image_similarity` and `caption_similarity` are
            computed from its tf-idf rows. None: batches do not have these columns.
    """

    def __init__(
        self,
        split: CaptionSplit,
        lengths: tuple[int, ...],
        *,
        order: np.ndarray | None = None,
        images: bool = True,
        similarity: dict[str, sparse.csr_matrix] | None = None,
    ):
        self._split, self._lengths, self._order = split, tuple(lengths), order
        self._images, self._similarity = images, similarity or {}

    def __call__(self, columns: dict[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
        """Returns the columns of b rows; see `MakeBatch`. Similarities `[b, B]` compare them with all B rows."""
        split = self._split
        index = columns["index"] if self._order is None else self._order[columns["index"]]
        longest_first = np.argsort(-split.lengths[index], kind="stable")
        index = index[longest_first]
        columns = {name: column[longest_first][part] for name, column in columns.items()}
        longest = int(split.lengths[index].max())
        width = next((length for length in self._lengths if length >= longest), -(-longest // 8) * 8)
        own = index[part]
        tokens, lengths = split.padded_tokens(own, width), split.lengths[own]
        columns |= {"index": own.astype(np.int32), "length": lengths, "tokens": tokens}
        if self._images:
            columns["image"] = split.images[own // split.per_image]
        for name, rows in self._similarity.items():
            places = index // (len(split) // rows.shape[0])
            columns[f"{name}_similarity"] = (rows[places[part]] @ rows[places].T).toarray().astype(np.float32)
        return columns


def semantic_similarity(split: CaptionSplit, names: tuple[str, ...]) -> dict[str, sparse.csr_matrix]:
    """Computes tf-idf rows for each of `names`: "caption" has one row per caption, "image" one mean row per image."""
    if not names:
        return {}
    rows = tf_idf(split.captions)
    return {name: rows if name == "caption" else image_means(rows, split.per_image) for name in names}


def feature_photo_names(split: CaptionSplit) -> list[str]:
    """Returns the photo name of each image, from the JSON file that `aia features` writes beside the features.

    Raises:
        InputError: the file is absent or malformed, or lists too few photos.
    """
    path = split.images.path.with_suffix(".json")
    if not path.exists():
        raise InputError(f"{path}, which names the photos of the features, does not exist; aia features writes it")
    document = read_json(path, '{"images": [...]}, the names of the photos of the features')
    names = document.get("images") if isinstance(document, dict) else None
    rows = split.images.rows
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or max(rows) >= len(names):
        raise InputError(f'{path} does not name a photo for each row, {{"images": [...]}}, as aia features writes it')
    return [names[row] for row in rows]


def _features(path: Path, num_captions: int, per_image: int) -> MappedRows:
    """Memory-maps the features of I images, `[I, R, F]`. The file may have one row per image, or one per caption.

    `per_image` is the number of captions of an image. 0: it is read from the rows.
    """
    if not path.exists():
        raise InputError(f"{path}, the image features, does not exist; aia features creates it from photos")
    rows = MappedRows(path)
    if len(rows.shape) != 3 or rows.dtype.kind != "f":
        raise InputError(f"{path} must be a float array [images, regions, features], found {rows.dtype} {rows.shape}")
    found = f"{path} holds features of {len(rows)} images, but there are {num_captions} captions beside it"
    if per_image and (num_captions % per_image or len(rows) not in (num_captions // per_image, num_captions)):
        rows_needed = f"{num_captions / per_image:g} or {num_captions} rows, one per image or one per caption"
        raise InputError(f"{found}; config.data.captions_per_image={per_image} needs {rows_needed}")
    if not len(rows) or num_captions % len(rows):
        raise InputError(f"{found}: no whole number of captions per image; one row per image or per caption is needed")
    single = len(rows) < num_captions or per_image == 1
    return rows.take(np.arange(0, len(rows), 1 if single else _repetitions(rows, per_image)))


def _repetitions(rows: MappedRows, per_image: int) -> int:
    """Returns how often the features of each image are repeated, if there is a row for each of N captions.

    Raises:
        InputError: the rows are not alike in groups of `per_image` or, if this is 0, of any size.
    """
    starts = np.flatnonzero(np.concatenate([[True], ~_alike_neighbours(rows)]))  # of the runs of rows that are alike
    lengths = np.diff(starts, append=len(rows))
    common = math.gcd(*lengths.tolist())
    chosen = per_image or (common if common > 1 and common % _USUAL else _USUAL)
    if common % chosen == 0:
        return chosen
    if per_image or len(starts) < len(rows):
        run = int(np.flatnonzero(lengths % chosen)[0])
        first, number = starts[run] + 1, lengths[run]
        problem = f"rows {first} to {first + number - 1} are alike: a run of {number}, no multiple of {chosen}"
    else:
        periods = (len(rows) // size for size in range(2, 11) if len(rows) % size == 0)
        copy = next((k for k in periods if k > 2 and np.array_equal(rows[0:3], rows[k : k + 3])), 0)  # as np.tile does
        if not copy:
            return 1
        problem = f"row {copy + 1} and the next ones repeat row 1 and the next ones"
    raise InputError(
        f"{rows.path} holds a row for each of the {len(rows)} captions beside it, but {problem}. If each image has "
        f"{chosen} captions, its row must be there {chosen} times in sequence: create the file again. If each row is "
        "an image with one caption, set config.data.captions_per_image=1"
    )


def _alike_neighbours(rows: MappedRows) -> np.ndarray:
    """Returns bool `[N - 1]`, whether each of N rows equals the next one, except for rounding.

    Compares only the ends of the rows, because all of COCO's features have 7 GB.
    """

    def alike(row: int) -> bool:
        values = (rows[k].ravel() for k in (row, row + 1))
        one, other = (np.concatenate([row[:_COMPARED], row[-_COMPARED:]]).astype(np.float32) for row in values)
        return bool(np.abs(one - other).max(initial=0) <= 1e-3 * np.abs(one).max(initial=0))

    return np.array([alike(row) for row in range(len(rows) - 1)], bool)


def _load_scenes(config_data: ConfigDict, split: str, vocabulary: Vocabulary) -> CaptionSplit:
    part = "test" if split == "test" else "train"
    captions = scene_captions(config_data, part)
    images = load_split(config_data, part, config_data.image_size).images
    whole = CaptionSplit(images, captions, *encode_captions(captions, vocabulary))
    if split == "test":
        return whole
    first = len(images) - validation_size(config_data.validation_fraction, len(images))
    return whole.take(np.arange(first) if split == "train" else np.arange(first, len(images)))
