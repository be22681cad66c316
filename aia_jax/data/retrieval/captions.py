"""Loads images with five captions each: features in SCAN's format (Lee et al., ECCV 2018), or generated scenes."""

import dataclasses
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import sparse

from aia_jax.data import scenes
from aia_jax.data.annotation.datasets import load_split, scene_indices, validation_size
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.data.vocabulary import Vocabulary, encode_captions, image_means, read_captions, tf_idf
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json

CAPTIONS_PER_IMAGE = 5
_DEV_CAPTIONS = 5000  # number of captions to use from a larger dev split, as in SCAN's code
_FILES = {"train": ("train",), "validation": ("dev",), "test": ("testall", "test")}


@dataclasses.dataclass(frozen=True)
class CaptionSplit:
    """A split of I images with C = 5I captions. The five captions of an image are consecutive.

    Attributes:
        images: memory-mapped. Either features of R regions, float `[I, R, F]`, or pixels, uint8 `[I, S, S, 3]`.
        captions: C texts.
        tokens: word ids, int32 `[C, L]`, padded with 0.
        lengths: number of word ids of each caption, int32 `[C]`.
    """

    images: MappedRows
    captions: tuple[str, ...]
    tokens: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, images: np.ndarray) -> "CaptionSplit":
        """Returns a split of the images with the indices `images`, and their captions. Does not read the images."""
        captions = (CAPTIONS_PER_IMAGE * images[:, None] + np.arange(CAPTIONS_PER_IMAGE)).ravel()
        texts = tuple(self.captions[caption] for caption in captions)
        return CaptionSplit(self.images.take(images), texts, self.tokens[captions], self.lengths[captions])


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
    if len(captions) % CAPTIONS_PER_IMAGE:
        raise InputError(
            f"{path} holds {len(captions)} captions, not a multiple of {CAPTIONS_PER_IMAGE}: each image has"
            f" {CAPTIONS_PER_IMAGE} captions in sequence"
        )
    images = _features(folder / f"{stem}_ims.npy", len(captions))
    whole = CaptionSplit(images, captions, *encode_captions(captions, vocabulary, name=str(path)))
    if split == "validation" and len(captions) > _DEV_CAPTIONS:
        return whole.take(np.arange(_DEV_CAPTIONS // CAPTIONS_PER_IMAGE))
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
        tokens = split.tokens[own, :width]
        tokens = np.pad(tokens, [(0, 0), (0, width - tokens.shape[1])])
        columns |= {"index": own.astype(np.int32), "length": split.lengths[own], "tokens": tokens}
        if self._images:
            columns["image"] = split.images[own // CAPTIONS_PER_IMAGE]
        for name, rows in self._similarity.items():
            places = index // (len(split) // rows.shape[0])
            columns[f"{name}_similarity"] = (rows[places[part]] @ rows[places].T).toarray().astype(np.float32)
        return columns


def semantic_similarity(split: CaptionSplit, names: tuple[str, ...]) -> dict[str, sparse.csr_matrix]:
    """Computes tf-idf rows for each of `names`: "caption" has one row per caption, "image" one mean row per image."""
    if not names:
        return {}
    rows = tf_idf(split.captions)
    return {name: rows if name == "caption" else image_means(rows, CAPTIONS_PER_IMAGE) for name in names}


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
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f'{path} names no photos; expected {{"images": [...]}}, as aia features writes it')
    rows = split.images.rows
    if max(rows, default=0) >= len(names):
        raise InputError(f"{path} names {len(names)} photos, fewer than there are features; create both again")
    return [names[row] for row in rows]


def _features(path: Path, num_captions: int) -> MappedRows:
    """Memory-maps the features of I images, `[I, R, F]`. The file may have one row per image, or one per caption."""
    if not path.exists():
        raise InputError(f"{path}, the image features, does not exist; aia features creates it from photos")
    rows = MappedRows(path)
    if len(rows.shape) != 3 or rows.dtype.kind != "f":
        raise InputError(f"{path} must be a float array [images, regions, features], found {rows.dtype} {rows.shape}")
    num_images = num_captions // CAPTIONS_PER_IMAGE
    if len(rows) not in (num_images, num_captions):
        raise InputError(
            f"{path} holds features of {len(rows)} images, but there are {num_captions} captions beside it: "
            f"{num_images} rows are needed, one per image, or {num_captions}, one per caption"
        )
    return rows.take(np.arange(0, len(rows), len(rows) // num_images))


def _load_scenes(config_data: ConfigDict, split: str, vocabulary: Vocabulary) -> CaptionSplit:
    part = "test" if split == "test" else "train"
    captions = scene_captions(config_data, part)
    images = load_split(config_data, part, config_data.image_size).images
    whole = CaptionSplit(images, captions, *encode_captions(captions, vocabulary))
    if split == "test":
        return whole
    first = len(images) - validation_size(config_data.validation_fraction, len(images))
    return whole.take(np.arange(first) if split == "train" else np.arange(first, len(images)))
