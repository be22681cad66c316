"""Splits texts into word pieces, as BERT does, with the package `tokenizers`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aia_jax.data.safe_names import has_lone_surrogate
from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import import_with_extra

MAX_TOKENS = 256  # of a text, as in the settings of all-MiniLM-L6-v2; the rest of a longer text is ignored
_START, _END, _UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
_SHOWN = 60  # characters of a text in a message


class WordPieces(NamedTuple):
    """Word pieces of N texts.

    Attributes:
        ids: for each text, the ids of `[CLS]`, of its word pieces and of `[SEP]`, int32.
        truncated: bool `[N]`, whether a text was too long, so that only its first word pieces are used.
    """

    ids: list[np.ndarray]
    truncated: np.ndarray


class Tokenizer:
    """Splits texts with the vocabulary and the rules in a file `tokenizer.json`.

    Any string is a text: markup and control characters too. Characters and words that the vocabulary does not know,
    such as an emoji, become `[UNK]`. The file's own padding and truncation are not used.

    Raises:
        InputError: the package `tokenizers` is missing, or the file is missing, damaged or no tokenizer of BERT.
    """

    def __init__(self, path: str | Path):
        tokenizers = import_with_extra("tokenizers", "encoding texts", "text")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises no narrower class
            raise InputError(f"{path} cannot be read as tokenizer.json: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        special = [self._tokenizer.token_to_id(token) for token in (_START, _END, _UNKNOWN)]
        if None in special:
            raise InputError(f"{path} is no tokenizer of BERT: it lacks {_START}, {_END} or {_UNKNOWN}")
        self._special = np.array(special)
        words = [piece for piece in self._tokenizer.get_vocab() if re.search("[a-z0-9]", piece)]
        self._words = np.setdiff1d([self._tokenizer.token_to_id(piece) for piece in words], special)

    def encode(self, texts: Sequence[str]) -> WordPieces:
        """Splits N texts. Raises InputError if a text contains half of a character."""
        if broken := next(filter(has_lone_surrogate, texts), ""):
            raise InputError(f"{broken!r:.{_SHOWN}} is not a text: it contains half of a character")
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        truncated = np.array([bool(encoding.overflowing) for encoding in encodings], bool)
        return WordPieces([np.array(encoding.ids, np.int32) for encoding in encodings], truncated)

    def check_words(self, texts: Sequence[str], noun: str) -> list[str]:
        """Checks that each text has a known word piece with Latin letters or digits. `noun` is such as "label".

        Returns:
            The texts that are too long, so that only their first `MAX_TOKENS - 2` word pieces are used.

        Raises:
            InputError: a text has no such word piece: it is empty, or has only signs, emoji or words in other scripts.
        """
        ids, truncated = self.encode(texts)
        for text, row in zip(texts, ids, strict=True):
            if not np.isin(row, self._words).any():
                problem = "has no known word" if len(row) > 2 else "has no word" if text.strip() else "is empty"
                raise InputError(f"the {noun} {text!r:.{_SHOWN}} {problem}; give English words")
        return [text for text, is_long in zip(texts, truncated, strict=True) if is_long]
