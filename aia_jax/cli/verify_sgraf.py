"""Runs a retrieval file's model in PyTorch and here, on the same drawn features and captions."""

import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aia_jax.cli.compare_stages import Stage, Stages, passes, timed
from aia_jax.models.retriever import Retriever
from aia_jax.tasks import RetrievalTask
from aia_jax.utils.errors import InputError
from aia_jax.weights import name_map
from aia_jax.weights.load import check_model, model_shapes, model_with_arrays
from aia_jax.weights.torch_files import read_torch_file
from aia_jax.weights.torch_state import identify_state

_IMAGES = 4
_LENGTHS = np.array([20, 13, 9, 5, 3], np.int32)  # of captions


def verify_retrieval(config: ConfigDict, source: Path, *, tolerance: float) -> bool:
    """Prints, stage by stage, how far both frameworks are apart; see `verify.verify`.

    Raises:
        InputError: torch is missing, or the file does not fit.
    """
    try:
        torch_sgraf = importlib.import_module("aia_jax.weights.torch_sgraf")
    except ImportError:
        raise InputError("verifying needs torch: pip install 'aia_jax[verify]'") from None
    config = config.copy_and_resolve_references()
    config.model.dtype = "float32"
    task = RetrievalTask(config)
    state, options = read_torch_file(source)
    torch_state = identify_state(state, str(source), options)
    shapes = model_shapes(task.build_model)
    check_model(torch_state, config, shapes, str(source))
    ours = model_with_arrays(task, name_map.from_torch(torch_state, shapes, str(source)))
    theirs = torch_sgraf.load_torch(config.model, state)
    features, tokens = _inputs(config, len(task.vocabulary))
    here, there = _stages(ours, features, tokens), _torch_stages(theirs, features, tokens)
    return passes(here, there, f"{len(features)} images, {len(tokens)} captions", tolerance)


def _inputs(config: ConfigDict, num_words: int) -> tuple[np.ndarray, np.ndarray]:
    rng, model = np.random.default_rng(0), config.model
    features = rng.normal(size=(_IMAGES, model.num_regions, model.num_features)).astype(np.float32)
    tokens = rng.integers(1, num_words, (len(_LENGTHS), _LENGTHS.max()), dtype=np.int32)
    return features, np.where(np.arange(_LENGTHS.max()) < _LENGTHS[:, None], tokens, 0)


def _stages(model: Retriever, features: np.ndarray, tokens: np.ndarray) -> Stages:
    images, image_seconds = timed(jax.jit(lambda x: model.encode_images(x, train=False)), features)
    encode = jax.jit(lambda x, lengths: model.encode_captions(x, lengths, train=False))
    captions, caption_seconds = timed(encode, tokens, _LENGTHS)
    pairs = len(features) * len(tokens)
    score = jax.jit(lambda *encoded: model.similarity(*encoded, train=False, block=pairs))
    return _named(images, image_seconds, captions, caption_seconds, *timed(score, images, captions, _LENGTHS))


def _torch_stages(model: Any, features: np.ndarray, tokens: np.ndarray) -> Stages:
    import torch

    lengths = torch.from_numpy(_LENGTHS)
    with torch.inference_mode():
        images, image_seconds = timed(model.encode_images, torch.from_numpy(features))
        captions, caption_seconds = timed(model.encode_captions, torch.from_numpy(tokens).long(), lengths)
        scored = timed(model.similarity, images, captions, lengths)
    return _named(images, image_seconds, captions, caption_seconds, *scored)


def _named(
    images: Any, image_seconds: float, captions: Any, caption_seconds: float, similarity: Any, seconds: float
) -> Stages:
    return {
        "regions": Stage(np.asarray(images[0]), None),
        "whole image": Stage(np.asarray(images[1]), image_seconds),
        "words": Stage(np.asarray(captions[0]), None),
        "whole caption": Stage(np.asarray(captions[1]), caption_seconds),
        "similarity": Stage(np.asarray(similarity), seconds),
    }
