"""SGRAF with random weights, its files as the authors' programs write them, and data in SCAN's layout."""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.configs import sgraf
from aia_jax.data.vocabulary import SPECIAL_WORDS
from aia_jax.models.retriever import Retriever
from aia_jax.models.sgraf import SGRAF
from tests.helpers.references import model_of, random_state

WORDS = (
    *SPECIAL_WORDS,
    *(first + second for first, second in itertools.product(("ba", "do", "li"), ("na", "ru", "so"))),
)
SIZES = {"num_regions": 36, "embed_size": 24, "word_size": 10, "similarity_size": 12}
FEATURES = 14


def builder(reasoning: str, num_words: int = len(WORDS)) -> Callable[[], Retriever]:
    """Returns a function that builds our model."""
    return lambda: Retriever(SGRAF(num_words, FEATURES, **SIZES, reasoning=reasoning, rngs=nnx.Rngs(0)))


def random_sgraf(reasoning: str, seed: int = 0, num_words: int = len(WORDS)) -> dict[str, np.ndarray]:
    """A state dict with random values in every array, and scores that differ clearly."""
    state = random_state(builder(reasoning, num_words), "sgraf", seed)
    for name in state:
        if "cap_rnn.bias" in name:
            state[name] -= 0.7  # now from -0.3 to 0.3
        factor = {"sim_tranloc_w": 5, "sim_tranglo_w": 5, "sim_graph_w": 2, "sim_eval_w": 3}.get(name.split(".")[-2])
        if factor and name.endswith("weight"):  # without the mean, because all pairs have much in common
            state[name] = factor * (state[name] - state[name].mean(axis=1, keepdims=True))
    return state


def checkpoint_of(state: dict[str, np.ndarray], reasoning: str, **options) -> dict:
    """A checkpoint of the authors' programs, of arrays; `options` replace those of `opt`, and None removes one."""
    opt = {
        **{"data_name": "f30k_precomp", "batch_size": 128, "margin": 0.2, "max_violation": True},
        **{"img_dim": FEATURES, "word_dim": SIZES["word_size"], "embed_size": SIZES["embed_size"]},
        **{"sim_dim": SIZES["similarity_size"], "num_layers": 1, "bi_gru": True, "vocab_size": len(WORDS)},
        **{"no_imgnorm": False, "no_txtnorm": False, "module_name": reasoning.upper(), "sgr_step": 3},
        **options,
    }
    encoders = [{}, {}, {}]
    for name, value in state.items():
        encoders[int(name[0])][name[2:]] = value
    return {
        "epoch": 7,
        "model": encoders,
        "best_rsum": 412.5,
        "opt": argparse.Namespace(**{name: value for name, value in opt.items() if value is not None}),
        "Eiters": 9000,
    }


def ours_of(state: dict[str, np.ndarray], reasoning: str) -> Retriever:
    """Our model with the arrays of a state dict."""
    return model_of(builder(reasoning, len(state["1.embed.weight"])), state, "sgraf")


def torch_sgraf(state: dict[str, np.ndarray], reasoning: str):
    """The model in torch, without dropout and in evaluation mode, with the arrays of a state dict."""
    from aia_jax.weights.torch_sgraf import TorchSGRAF
    from tests.helpers.torch_oracles import load

    model = TorchSGRAF(len(state["1.embed.weight"]), FEATURES, **SIZES, reasoning=reasoning, dropout=0.0)
    return load(model, state).eval()


def random_batch(num_images: int, lengths: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random features `[I, R, F]`, tokens `[C, L]` padded with 0, and lengths `[C]`."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_images, SIZES["num_regions"], FEATURES)).astype(np.float32)
    tokens = rng.integers(1, len(WORDS), (len(lengths), max(lengths)), dtype=np.int32)
    lengths = np.array(lengths, np.int32)
    return features, np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 0), lengths


def torch_scores(model, features: np.ndarray, tokens: np.ndarray, lengths: np.ndarray):
    """Scores `[C, I]` of the model in torch, a tensor."""
    import torch

    tokens, lengths = torch.from_numpy(tokens).long(), torch.from_numpy(lengths)
    images, captions = model.encode_images(torch.from_numpy(features)), model.encode_captions(tokens, lengths)
    return model.similarity(images, captions, lengths)


def write_vocabulary(root: Path) -> None:
    """Writes `<root>/vocab/f30k_precomp_vocab.json` with `WORDS`."""
    (root / "vocab").mkdir(parents=True)
    document = {"word2idx": {word: number for number, word in enumerate(WORDS)}, "idx2word": {}, "idx": len(WORDS)}
    (root / "vocab" / "f30k_precomp_vocab.json").write_text(json.dumps(document))


def write_test_split(root: Path, num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes a test split of random features and captions; returns them as `random_batch` does."""
    rng = np.random.default_rng(3)
    features, _, _ = random_batch(num_images, (1,), seed=3)
    lengths = rng.integers(2, 9, 5 * num_images)
    captions = [[WORDS[word] for word in rng.integers(4, len(WORDS), length)] for length in lengths]
    folder = root / "f30k_precomp"
    folder.mkdir(parents=True)
    np.save(folder / "test_ims.npy", features)
    (folder / "test_caps.txt").write_text("".join(f"{' '.join(caption)}\n" for caption in captions))
    lengths = (lengths + 2).astype(np.int32)  # with <start> and <end>
    tokens = np.zeros((len(captions), lengths.max()), np.int32)
    for row, caption in zip(tokens, captions, strict=True):
        row[: len(caption) + 2] = [1, *map(WORDS.index, caption), 2]
    return features, tokens, lengths


def small_config(root: Path, reasoning: str, **overrides) -> ConfigDict:
    """`configs/sgraf.py:f30k` for these data and models."""
    config = sgraf.get_config(f"f30k,{reasoning}")
    sizes = {f"model.{name}": size for name, size in {**SIZES, "num_features": FEATURES}.items()}
    config.update_from_flattened_dict({"data.root": str(root), "eval.batch_size": 8, **sizes, **overrides})
    return config
