"""Splits captions into words. Computes vocabularies, word ids and tf-idf rows. Reads word vectors.

Caption files have the layout of SCAN (Lee et al., ECCV 2018): one caption per line, and the captions of an image are
consecutive. Vocabulary files have SCAN's format.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aia_jax.data.safe_names import has_lone_surrogate
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, read_text, write_json

if TYPE_CHECKING:
    from scipy import sparse

PAD, START, END, UNKNOWN = SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unk>")

# Separates "street." inside a caption, as punkt did for COCO's vocabulary. Of 609,029 tokens of Flickr30K and Flickr8k,
# 5,066 are unknown, with or without this rule. If it also applied to shorter words ("j.p."), 5,071 would be unknown.
_INNER_STOP = re.compile(r"(?<=\w{3})(?<!\bave)(?<!\bmrs)\.(?=\s)")
# 96 to 98 % of the captions match this pattern. For them, `_PLAIN_TOKEN` gives nltk's tokens in a tenth of the time.
_PLAIN = re.compile(r"(?!.*(?:--|,,|\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b))[a-z ,-]*\.?")
_PLAIN_TOKEN = re.compile(r"[a-z-]+|[,.]")

_IMAGE = re.compile(r"""["']?[^,|\t]+\.(?:jpe?g|png|gif|bmp|webp|tiff?)\b|\d+ ?[,;|#]""", re.IGNORECASE)
_OTHER_COLUMNS = {
    "the name or number of an image in each line": _IMAGE,
    "columns separated by tabs": re.compile(".*\t"),
}
_MOST_UNKNOWN = 0.5
_SCAN_FORMAT = "SCAN's {word2idx, idx2word, idx}; `aia vocab` writes one"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Words and their ids. The id of `<pad>` is 0.

    Attributes:
        ids: dict from word to id. The ids of n words are 0 to n - 1.
        name: name of the vocabulary in messages, such as its file.
    """

    ids: dict[str, int]
    name: str = dataclasses.field(default="the vocabulary", compare=False)

    def __post_init__(self) -> None:
        if absent := [word for word in SPECIAL_WORDS if word not in self.ids]:
            raise InputError(f"{self.name} lacks {', '.join(absent)}; expected {_SCAN_FORMAT}")
        if self.ids[PAD] != 0:
            raise InputError(f"{self.name}: {PAD} must be 0, which pads captions, found {self.ids[PAD]!r}")
        if odd := [word for word in self.ids if has_lone_surrogate(word)]:
            raise InputError(f"{self.name}: {odd[0]!r:.80} is not a word, it contains half of a character")
        words: dict[int, str] = {}
        for word, number in self.ids.items():
            if type(number) is not int or not 0 <= number < len(self.ids):
                raise InputError(f"{self.name}: {word!r} has id {number!r}; ids are 0 to {len(self.ids) - 1}")
            if (first := words.setdefault(number, word)) != word:
                raise InputError(f"{self.name}: {first!r} and {word!r} both have id {number}; ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, word: str) -> bool:
        return word in self.ids

    @property
    def words(self) -> tuple[str, ...]:
        """The words, ordered by id."""
        return tuple(sorted(self.ids, key=self.ids.get))

    @property
    def facts(self) -> dict[str, int | str]:
        """Facts that identify the vocabulary: `words` is the number of words, and `sha256` is a hash of all words."""
        return {"words": len(self), "sha256": hashlib.sha256("\n".join(self.words).encode()).hexdigest()}

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads the field `word2idx` of a JSON file in SCAN's format.

        Raises:
            InputError: the file is absent or malformed, a special word is missing, or the ids have gaps.
        """
        document = read_json(path, _SCAN_FORMAT)
        if not isinstance(document, dict) or not isinstance(document.get("word2idx"), dict):
            raise InputError(f"{path} has no object word2idx; expected {_SCAN_FORMAT}")
        return cls(document["word2idx"], str(path))

    def save(self, path: str | Path) -> None:
        """Writes a JSON file in SCAN's format, atomically."""
        words = {str(number): word for word, number in self.ids.items()}
        write_json(Path(path), {"idx2word": words, "word2idx": self.ids, "idx": len(self)})

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 4) -> Vocabulary:
        """Builds a vocabulary of `SPECIAL_WORDS` and of the words that occur at least `min_count` times.

        The special words have the first ids. The other words have ids in the order of first occurrence.

        Raises:
            InputError: no word occurs `min_count` times.
        """
        words = [word for word, count in word_counts(captions).items() if count >= min_count]
        if not words:
            raise InputError(f"no word occurs {min_count} times; give more captions or a lower min_count")
        return cls({word: number for number, word in enumerate((*SPECIAL_WORDS, *words))})

    def encode(self, caption: str) -> list[int]:
        """Returns the id of `<start>`, the ids of the words of a caption, and the id of `<end>`."""
        unknown = self.ids[UNKNOWN]
        words = (self.ids.get(word, unknown) for word in tokenize(caption))
        return [self.ids[START], *words, self.ids[END]]


def tokenize(caption: str) -> list[str]:
    """Splits a caption into lower-case words and punctuation marks.

    The result equals that of nltk's `word_tokenize`, except at the ends of sentences. nltk's data files are not needed.
    """
    text = _INNER_STOP.sub(" .", caption.lower().strip())
    if _PLAIN.fullmatch(text):
        return _PLAIN_TOKEN.findall(text)
    from nltk.tokenize import word_tokenize  # takes a second to import

    return word_tokenize(text, preserve_line=True)


def word_counts(captions: Iterable[str]) -> Counter[str]:
    """Returns the number of occurrences of each word, in the order of first occurrence."""
    return Counter(chain.from_iterable(map(tokenize, captions)))


def read_captions(path: str | Path) -> tuple[str, ...]:
    r"""Reads captions from a UTF-8 file, one per line. Strips whitespace around them. Only "\n" ends a line.

    Raises:
        InputError: the file is absent, not UTF-8 or empty, a line is empty, or the lines hold more than captions.
    """
    lines = read_text(Path(path), newline="\n").removesuffix("\n").split("\n")
    captions = tuple(line.strip() for line in lines)
    if captions == ("",):
        raise InputError(f"{path} is empty; it must have one caption per line")
    if empty := [number for number, caption in enumerate(captions, start=1) if not caption]:
        others = f", as are {len(empty) - 1:,} others" if len(empty) > 1 else ""
        raise InputError(f"{path}: line {empty[0]} is empty{others}; every line must have a caption")
    if found := _other_format(captions):
        raise InputError(
            f"{path} holds {found}, not captions alone. Write a text file with one caption per line, in the order of "
            "the features and without the names of the images; `aia features --list` takes a file of the names"
        )
    return captions


def _other_format(lines: Sequence[str]) -> str:
    """Returns what the lines of a file are if they are not captions, such as those of Flickr8k.token.txt, or ""."""
    if re.match(r"[\[{]\s*([\[{\s]*\"|\{|$)", lines[0]):
        return "JSON"
    for found, pattern in _OTHER_COLUMNS.items():
        if sum(map(bool, map(pattern.match, lines))) >= max(2, 0.9 * (len(lines) - 1)):  # one may be a header
            return f"{found}, such as {lines[-1]!r:.60}"
    return ""


def pad_ids(rows: Sequence[Sequence[int]], width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pads or cuts N rows of ids to the length `width` L; None: the length of the longest row.

    Returns:
        ids: int32 `[N, L]`, padded with 0.
        lengths: int32 `[N]`, length of each row without padding.
    """
    rows = [row[:width] for row in rows]
    lengths = np.fromiter(map(len, rows), np.int32, len(rows))
    ids = np.zeros((len(rows), lengths.max(initial=0) if width is None else width), np.int32)
    if rows:
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return ids, lengths


def encode_captions(
    captions: Sequence[str], vocabulary: Vocabulary, *, name: str = "the captions"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of `Vocabulary.encode` for N captions, as `pad_ids` pads them. `name` is for messages.

    Raises:
        InputError: more than half of the words are not in the vocabulary.
    """
    ids, lengths = pad_ids([np.array(vocabulary.encode(caption), np.int32) for caption in captions])
    num_words = int(lengths.sum()) - 2 * len(captions)
    num_unknown = int(np.count_nonzero(ids == vocabulary.ids[UNKNOWN]))
    if num_unknown > _MOST_UNKNOWN * num_words:
        counts = word_counts(captions).most_common()
        missing = [repr(word) for word, _ in counts if word not in vocabulary][:5]
        raise InputError(
            f"{num_unknown:,} of {num_words:,} words of {name} are not in {vocabulary.name}"
            f" ({len(vocabulary):,} words), such as {', '.join(missing)};"
            " give the vocabulary of these captions, `aia vocab` makes one"
        )
    return ids, lengths


def tf_idf(captions: Sequence[str]) -> sparse.csr_matrix:
    """Computes tf-idf rows of captions with scikit-learn. The dot product of two rows is their cosine similarity.

    The steps are those of VSL (Zhang et al., ICME 2023): CountVectorizer (words of two or more letters), then
    TfidfTransformer (smooth idf, rows of norm 1). A dense matrix of COCO's training split would take over 100 GB.

    Returns:
        float64 `[N, V]` for N captions and V different words. A caption without any of these words has a row of zeros.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer  # takes a second to import

    vectorizer = CountVectorizer()
    if not any(map(re.compile(vectorizer.token_pattern).search, captions)):
        raise InputError("no caption has a word of two letters or more, tf-idf needs one")
    return sparse.csr_matrix(TfidfTransformer().fit_transform(vectorizer.fit_transform(captions)))


def caption_similarity(captions: Sequence[str], owners: np.ndarray) -> sparse.csr_matrix:
    """Returns the mean tf-idf row of each image's captions, `[I, V]`. `owners` `[C]` has the image of each caption."""
    from scipy import sparse

    weights = 1 / np.bincount(owners)[owners]
    means = sparse.csr_matrix((weights, (owners, np.arange(len(owners)))))
    return means @ tf_idf(captions)


def image_means(rows: sparse.csr_matrix, per_image: int) -> sparse.csr_matrix:
    """Computes the means `[N / per_image, V]` of each `per_image` consecutive tf-idf rows of `rows`, `[N, V]`.

    The dot product of two means is the mean cosine similarity of the captions of one image to those of the other.
    """
    from scipy import sparse

    return sparse.kron(sparse.identity(rows.shape[0] // per_image), np.full(per_image, 1 / per_image), "csr") @ rows


def read_vectors(path: str | Path, vocabulary: Vocabulary, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads GloVe or word2vec vectors of the words in a vocabulary. Memory does not grow with the size of the file.

    Args:
        path: UTF-8 text with a word and `size` numbers per line. A header of word2vec (two numbers) is skipped.

    Returns:
        ids: int64 `[K]`, the ids of the K words that the file contains.
        vectors: float32 `[K, size]`, scaled by one factor to a mean square of 1, which random vectors also have.

    Raises:
        InputError: the file is absent or malformed, the vectors have another size, or no word is in the vocabulary.
    """
    found: dict[int, np.ndarray] = {}
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                word, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue
                if len(values) != size:
                    raise InputError(
                        f"{path}:{number}: a word and {len(values)} numbers, but config.model.word_size is {size}"
                    )
                if word in vocabulary:
                    found[vocabulary.ids[word]] = vector = np.array(values, np.float32)
                    if not np.isfinite(vector).all():
                        raise InputError(f"{path}:{number}: a number is not finite")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"config.model.word_vectors: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except ValueError:
        raise InputError(f"{path}:{number}: not all of {' '.join(values[:4])} ... are numbers") from None
    if not found:
        raise InputError(f"{path} has none of the {len(vocabulary):,} words of the queries")
    vectors = np.stack(list(found.values()))
    scale = math.sqrt(float(np.square(vectors, dtype=np.float64).mean()))
    return np.array(list(found)), vectors / max(scale, np.finfo(np.float32).tiny)
