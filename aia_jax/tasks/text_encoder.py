"""Encodes texts with MiniLM, in batches of few shapes. Keeps the results for long lists of texts on disk."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from tqdm import tqdm

from aia_jax.data.cache import cache_root, cached_directory
from aia_jax.data.token_outputs import TokenOutputs
from aia_jax.data.tokenizer import MAX_TOKENS, Tokenizer
from aia_jax.data.vocabulary import pad_ids
from aia_jax.models.minilm import WIDTH
from aia_jax.training.model_arrays import Arrays, merge_model
from aia_jax.training.prediction import fetch_outputs
from aia_jax.utils.files import sha256_of_file
from aia_jax.weights.minilm import minilm_files, read_minilm

_LENGTHS = (8, 16, 24, 32, 64, 128, MAX_TOKENS)  # texts are padded to these, so that few programs are compiled
_TOKENS = 1024  # of a batch; larger batches are not faster on CPUs
_FEW = 8  # rows of the batches if there are at most so many texts of a length
_CACHED_FROM = 100  # number of texts from which the results are kept on disk
_VERSION = 1  # version of the code below; increase it when a change of the code changes the results


class TextEncoder:
    """MiniLM with the weights and the tokenizer of the installed package.

    Args:
        cache_dir: `config.data.cache_dir`, where the results for long lists of texts are kept.

    Attributes:
        tokenizer: splits texts, and checks them: `encoder.tokenizer.check_words(queries, "query")`.
        digest: hash of the weights and of the tokenizer, twelve hexadecimal digits.

    Raises:
        InputError: a package is missing, or its files are damaged. The message has the command that installs it.
    """

    def __init__(self, cache_dir: str = ""):
        rules, self._weights_file = minilm_files()
        self.tokenizer = Tokenizer(rules)
        self.digest = _digest([sha256_of_file(rules), sha256_of_file(self._weights_file)])
        self._cache_dir = cache_dir

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Encodes N texts. Equal texts are encoded once.

        Returns:
            sentence: normalised mean of the last layer over the tokens of each text, float32 `[N, 384]`.
            token_max: maximum of the last layer over the tokens of each text, float32 `[N, 384]`.

        Raises:
            InputError: a text contains half of a character, or the cache cannot be written.
        """
        unique, rows = _unique(texts)
        specs = {name: ((len(unique), WIDTH), np.float32) for name in ("sentence", "token_max")}

        def fill(arrays: dict[str, np.ndarray]) -> None:
            for index, outputs in self._outputs(self.tokenizer.encode(unique).ids, tuple(arrays)):
                for name, array in arrays.items():
                    array[index] = outputs[name][: len(index)]

        arrays = self._kept("texts", unique, specs, fill)
        return {name: array[rows] for name, array in arrays.items()}

    def encode_tokens(self, texts: Sequence[str]) -> TokenOutputs:
        """Returns the last layer for each token of N texts, including `[CLS]` and `[SEP]`.

        Equal texts are encoded once. Raises InputError as `encode` does.
        """
        unique, rows = _unique(texts)
        ids = self.tokenizer.encode(unique).ids
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        starts = np.cumsum(lengths, dtype=np.int64) - lengths

        def fill(arrays: dict[str, np.ndarray]) -> None:
            for index, outputs in self._outputs(ids, ("tokens",)):
                for text, tokens in zip(index, outputs["tokens"], strict=False):
                    arrays["values"][starts[text] : starts[text] + lengths[text]] = tokens[: lengths[text]]

        arrays = self._kept("tokens", unique, {"values": ((int(lengths.sum()), WIDTH), np.float16)}, fill)
        return TokenOutputs(arrays["values"], starts[rows], lengths[rows])

    @functools.cached_property
    def _model(self) -> tuple[Callable[..., dict[str, Array]], Arrays]:
        graphdef, weights = read_minilm(self._weights_file)
        return jax.jit(functools.partial(_apply, graphdef)), jax.device_put(weights)

    def _outputs(self, ids: list[np.ndarray], names: Sequence[str]) -> Iterator[tuple[np.ndarray, Arrays]]:
        """Yields indices of texts, and the outputs `names` for these texts and for rows of padding after them."""
        step, weights = self._model

        def dispatched() -> Iterator[tuple[np.ndarray, Arrays]]:
            for index, num_rows, length in _batches(np.fromiter(map(len, ids), int, len(ids))):
                tokens, lengths = pad_ids([ids[text] for text in index], length)
                padding = num_rows - len(index)
                outputs = step(weights, np.pad(tokens, [(0, padding), (0, 0)]), np.pad(lengths, (0, padding)))
                yield index, {name: outputs[name] for name in names}

        options = {"delay": 1, "leave": False, "dynamic_ncols": True, "disable": jax.process_index() > 0 or None}
        with tqdm(desc="encode texts", total=len(ids), unit="text", **options) as bar:
            for index, outputs in fetch_outputs(dispatched()):
                yield index, outputs
                bar.update(len(index))

    def _kept(
        self,
        kind: str,
        texts: Sequence[str],
        specs: dict[str, tuple[tuple[int, ...], type]],
        fill: Callable[[dict[str, np.ndarray]], None],
    ) -> dict[str, np.ndarray]:
        """Returns arrays with the shapes and dtypes `specs`, which `fill` fills, for few texts, or reads them."""
        if len(texts) < _CACHED_FROM:
            arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in specs.items()}
            fill(arrays)
            return arrays

        def write(folder: Path) -> None:
            create = np.lib.format.open_memmap
            fill({name: create(folder / f"{name}.npy", "w+", dtype, shape) for name, (shape, dtype) in specs.items()})

        num_bytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in specs.values())
        parent, fingerprint = cache_root(self._cache_dir) / "texts", f"{self.digest}-{_VERSION}"
        folder = cached_directory(parent, f"{kind}-{_digest(texts)}", fingerprint, num_bytes, write)
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in specs}


def _apply(graphdef: nnx.GraphDef, weights: Arrays, tokens: Array, lengths: Array) -> dict[str, Array]:
    with jax.default_matmul_precision("highest"):  # GPUs would round to TF32, and TPUs to bfloat16
        sentence, outputs = merge_model(graphdef, weights)(tokens, lengths)
    mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
    maximum = jnp.where(mask[..., None], outputs, -jnp.inf).max(axis=1)
    return {"sentence": sentence, "token_max": maximum, "tokens": outputs}


def _batches(lengths: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields the indices of the texts of each batch, the number of rows of the batch, and the padded length."""
    padded = np.array(_LENGTHS)[np.searchsorted(_LENGTHS, lengths)]
    for length in _LENGTHS:
        texts = np.flatnonzero(padded == length)
        most = _TOKENS // length
        num_rows = min(most, next((rows for rows in (1, _FEW) if len(texts) <= rows), most))
        for start in range(0, len(texts), num_rows):
            yield texts[start : start + num_rows], num_rows, length


def _unique(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Returns the different texts in the order of their first occurrence, and the index of each text among them."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(places), np.fromiter((places[text] for text in texts), int, len(texts))


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)} {text}".encode(errors="backslashreplace"))
    return digest.hexdigest()[:12]
