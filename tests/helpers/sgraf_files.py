"""SGRAF in torch with random weights, its files as the authors' programs write them, and data in SCAN's layout."""

import argparse
import itertools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data.vocabulary import SPECIAL_WORDS
from aia_jax.models.retriever import Retriever
from aia_jax.models.sgraf import SGRAF
from aia_jax.training.model_arrays import flat_arrays, merge_model, replace_arrays, split_model
from aia_jax.weights import name_map
from aia_jax.weights.torch_sgraf import TorchSGRAF
from aia_jax.weights.torch_state import identify_state
from configs import sgraf
from tests.helpers.torch_oracles import arrays_of, torch

WORDS = (
    *SPECIAL_WORDS,
    *(first + second for first, second in itertools.product(("ba", "do", "li"), ("na", "ru", "so"))),
)
SIZES = {"num_regions": 36, "embed_size": 24, "word_size": 10, "similarity_size": 12}
FEATURES = 14


def random_sgraf(reasoning: str, seed: int = 0, num_words: int = len(WORDS)) -> TorchSGRAF:
    """A model without dropout, with random weights in every array and scores that differ clearly."""
    torch.manual_seed(seed)
    model = TorchSGRAF(num_words, FEATURES, **SIZES, reasoning=reasoning, dropout=0.0)
    generator = torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, torch.nn.Linear):
            part.weight.data.normal_(0, (2 / part.in_features) ** 0.5, generator=generator)
            part.bias.data.normal_(0, 0.2, generator=generator)
        elif isinstance(part, torch.nn.BatchNorm1d):
            part.weight.data.uniform_(0.4, 1.4, generator=generator)
            part.bias.data.normal_(0, 0.2, generator=generator)
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.1, 1.0, generator=generator)
    last = model.eval()[2].sim_eval_w
    last.bias.data.zero_()
    with torch.no_grad():
        logits = torch_scores(model, *random_batch(6, (9, 3, 7, 5))).logit()
    last.weight.data.div_(logits.std())
    last.bias.data.sub_(logits.mean() / logits.std())
    return model


def checkpoint_of(model: TorchSGRAF, reasoning: str, **options) -> dict:
    """A checkpoint of the authors' programs; `options` replace those of `opt`, and None removes one."""
    opt = {
        **{"data_name": "f30k_precomp", "batch_size": 128, "margin": 0.2, "max_violation": True},
        **{"img_dim": FEATURES, "word_dim": SIZES["word_size"], "embed_size": SIZES["embed_size"]},
        **{"sim_dim": SIZES["similarity_size"], "num_layers": 1, "bi_gru": True, "vocab_size": len(WORDS)},
        **{"no_imgnorm": False, "no_txtnorm": False, "module_name": reasoning.upper(), "sgr_step": 3},
        **options,
    }
    return {
        "epoch": 7,
        "model": [encoder.state_dict() for encoder in model],
        "best_rsum": 412.5,
        "opt": argparse.Namespace(**{name: value for name, value in opt.items() if value is not None}),
        "Eiters": 9000,
    }


def ours_of(theirs: TorchSGRAF, reasoning: str) -> Retriever:
    """This project's model with the converted weights of the torch model."""
    model = Retriever(SGRAF(theirs[1].embed.num_embeddings, FEATURES, **SIZES, reasoning=reasoning, rngs=nnx.Rngs(1)))
    graphdef, weights = split_model(model)
    shapes = {path: leaf.shape for path, leaf in flat_arrays(weights).items()}
    arrays = name_map.from_torch(identify_state(arrays_of(theirs), "torch"), shapes, "torch")
    return merge_model(graphdef, replace_arrays(weights, {path: jnp.asarray(value) for path, value in arrays.items()}))


def random_batch(num_images: int, lengths: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random features `[I, R, F]`, tokens `[C, L]` padded with 0, and lengths `[C]`."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_images, SIZES["num_regions"], FEATURES)).astype(np.float32)
    tokens = rng.integers(1, len(WORDS), (len(lengths), max(lengths)), dtype=np.int32)
    lengths = np.array(lengths, np.int32)
    return features, np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 0), lengths


def torch_scores(model: TorchSGRAF, features: np.ndarray, tokens: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Scores `[C, I]`."""
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
