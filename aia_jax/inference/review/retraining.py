"""Fits the head of an annotator and the thresholds to imported labels and to the answers of a person.

Imported photos have all their labels. Of a corrected photo, only the answered labels are known: the loss leaves out all
others. The backbone does not change, so features are computed only once.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data.pipeline import epoch_end
from aia_jax.inference.review.imported import LabelledFeatures
from aia_jax.losses.annotation import masked_mean
from aia_jax.models.annotator import build_head, label_scores
from aia_jax.models.backbones import DTYPES
from aia_jax.tasks.annotation import configured_loss
from aia_jax.training.optimizer import make_optimizer
from aia_jax.utils.errors import InputError

_FOLDS = 3
_EPOCHS = 10  # more epochs overfit
_FEWEST_STEPS = 300
_CHUNK_BYTES = 32e6  # features of the steps that run in one call
_MOST_STEPS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class TrainingRows:
    """The photos to train on: N imported photos, and then M corrected photos. The vocabulary has C labels.

    Attributes:
        versions: features of the imported photos and of their flipped versions, each `[N, h, w, F]`.
        corrected: features of the corrected photos, `[M, h, w, F]`.
        targets: whether a photo has a label, bool `[N + M, C]`.
        known: whether this is known, bool `[N + M, C]`.
    """

    versions: tuple[Any, ...]
    corrected: np.ndarray
    targets: np.ndarray
    known: np.ndarray

    def features(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Returns the features `[B, h, w, F]` of photos. With `rng`, takes random versions of imported photos."""
        chosen = rng.integers(len(self.versions), size=len(rows)) if rng else np.zeros(len(rows), int)
        num_imported = len(self.targets) - len(self.corrected)
        imported = rows < num_imported
        found = np.empty((len(rows), *self.corrected.shape[1:]), np.float32)
        found[~imported] = self.corrected[rows[~imported] - num_imported]
        for number, version in enumerate(self.versions):
            here = imported & (chosen == number)
            found[here] = version[rows[here]]
        return found


def join_rows(
    imported: LabelledFeatures,
    num_labels: int,
    paths: Sequence[str],
    features: np.ndarray,
    targets: np.ndarray,
    known: np.ndarray,
) -> TrainingRows:
    """Joins imported and corrected photos. The answers about an imported photo replace its imported labels.

    Imported photos count as photos without the labels that were added later.

    Args:
        num_labels: number C of labels. The first ones are the imported labels.
        paths: real path of each of the M corrected photos.
        features: their features, `[M, h, w, F]`.
        targets, known: their answers and which labels are answered, bool `[M, C]`.
    """
    rows = {path: row for row, path in enumerate(imported.paths) if path}
    own = np.zeros((len(imported.targets), num_labels), bool)
    own[:, : imported.targets.shape[1]] = imported.targets
    new = np.array([path not in rows for path in paths], bool)
    for path, target, answered in zip(paths, targets, known, strict=True):
        if path in rows:
            own[rows[path], answered] = target[answered]
    return TrainingRows(
        imported.versions,
        features[new],
        np.concatenate([own, targets[new]]),
        np.concatenate([np.ones_like(own), known[new]]),
    )


@dataclasses.dataclass(frozen=True)
class FittedHead:
    """A fitted head.

    Attributes:
        arrays: the arrays of the head, `{path: array}` with paths such as "head.linear.bias".
        scores: for each photo in the training rows, the scores of a head that was not trained on it, `[N + M, C]`.
    """

    arrays: dict[str, np.ndarray]
    scores: np.ndarray


def fit_head(
    config: ConfigDict,
    start: Mapping[str, np.ndarray],
    rows: TrainingRows,
    progress: Callable[[float], None],
) -> FittedHead:
    """Trains the head for a few epochs with the loss and the optimizer of the run.

    At the same time, trains three more heads. Each leaves out another third of the photos, and scores this third.

    Args:
        config: config of the run.
        start: the first values of the arrays of the head, `{path: array}`.
        progress: called with the finished fraction.
    """
    if config.model.get("score", "sigmoid") != "sigmoid":
        raise InputError(f"config.model.score={config.model.score!r} cannot be trained; review another model")
    num_rows, num_labels = rows.targets.shape
    batch_size = min(config.batch_size, num_rows)
    shape = rows.corrected.shape[1:]
    at_once = int(np.clip(_CHUNK_BYTES / (4 * batch_size * np.prod(shape)), 1, _MOST_STEPS_AT_ONCE))
    num_chunks = -(-max(_FEWEST_STEPS, min(_EPOCHS, config.epochs) * num_rows // batch_size) // at_once)
    total = num_chunks * at_once
    optimizer = make_optimizer(config.optimizer, total, lambda epoch: epoch_end(epoch, num_rows, batch_size))
    graphdef, params, rest = _split_head(config, num_labels, shape[-1], start)
    loss_of, dtype = configured_loss(config.loss), DTYPES[config.model.dtype]

    def loss(params: Any, batch: dict[str, jax.Array], fold: jax.Array, key: jax.Array) -> jax.Array:
        head = nnx.merge(graphdef, params, rest)
        logits, _ = head(batch["features"].astype(dtype), train=True, key=key)
        used = batch["known"] & (batch["fold"] != fold)[:, None]
        return masked_mean(loss_of(logits, batch["target"].astype(jnp.float32)), used)

    def step(carry: Any, batch: dict[str, jax.Array]) -> tuple[Any, None]:
        key = jax.random.fold_in(jax.random.key(config.seed), batch["step"])

        def update(params: Any, state: Any, fold: jax.Array) -> tuple[Any, Any]:
            grads = jax.grad(loss)(params, batch, fold, key)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return jax.vmap(update)(*carry, jnp.arange(_FOLDS + 1) - 1), None

    run = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches)[0], donate_argnums=0)
    several = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], _FOLDS + 1, axis=0), params)
    carry = several, jax.vmap(optimizer.init)(several)
    rng = np.random.default_rng(config.seed)
    fold = rng.permutation(num_rows) % _FOLDS  # -1 is the head that is trained on all photos
    chunks = _chunks(rows, fold, rng, batch_size, at_once, num_chunks)
    batches = next(chunks)
    for number in range(num_chunks):
        carry = run(carry, batches)
        batches = next(chunks, None)  # read while the devices compute
        jax.block_until_ready(carry)
        progress((number + 1) / num_chunks)
    found = jax.device_get(carry[0])
    heads = [jax.tree.map(lambda leaf, k=k: leaf[k], found) for k in range(_FOLDS + 1)]

    @jax.jit
    def score(params: Any, features: jax.Array) -> jax.Array:
        logits, _ = nnx.merge(graphdef, params, rest)(features.astype(dtype), train=False)
        return label_scores(logits.astype(jnp.float32), config.model)

    scores = np.zeros(rows.targets.shape, np.float32)
    for k in range(_FOLDS):
        left_out = np.flatnonzero(fold == k)
        for some in np.split(left_out, range(256, len(left_out), 256)):
            scores[some] = score(heads[k + 1], rows.features(some))
    trained = {f"head.{path}": np.asarray(leaf) for path, leaf in _flat(heads[0]).items()}
    return FittedHead({**start, **trained}, scores)


def _chunks(
    rows: TrainingRows, fold: np.ndarray, rng: np.random.Generator, batch_size: int, at_once: int, num_chunks: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of several steps, each `[at_once, B, ...]`. Each epoch has another order of the photos."""
    order = np.zeros(0, int)
    for number in range(num_chunks):
        while len(order) < at_once * batch_size:
            order = np.concatenate([order, rng.permutation(len(fold))])
        some, order = order[: at_once * batch_size], order[at_once * batch_size :]
        flat = {
            "features": rows.features(some, rng),
            "target": rows.targets[some],
            "known": rows.known[some],
            "fold": fold[some],
        }
        batches = {name: values.reshape(at_once, batch_size, *values.shape[1:]) for name, values in flat.items()}
        yield {**batches, "step": np.arange(number * at_once, (number + 1) * at_once)}


def _split_head(config: ConfigDict, num_labels: int, num_features: int, start: Mapping[str, np.ndarray]) -> Any:
    head = build_head(config.model, num_labels, num_features, rngs=nnx.Rngs(config.seed))
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)
    filled = [_fill(nnx.to_pure_dict(state), start) for state in (params, rest)]
    return graphdef, *filled


def initial_head(config: ConfigDict, num_labels: int, num_features: int, *, trainable: bool = False) -> dict[str, Any]:
    """Returns the random first values of the arrays of a head, `{path: array}`, or only of those that are trained."""
    head = build_head(config.model, num_labels, num_features, rngs=nnx.Rngs(config.seed))
    state = nnx.state(head, nnx.Param) if trainable else nnx.state(head)
    return {f"head.{path}": np.asarray(leaf) for path, leaf in _flat(nnx.to_pure_dict(state)).items()}


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _fill(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    def value(path: Any, leaf: Any) -> Any:
        return jnp.asarray(arrays[f"head.{jax.tree_util.keystr(path, simple=True, separator='.')}"], leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, tree)
