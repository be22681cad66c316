"""Retrains the head of a run's annotator with the answers of a person, reports what changed, and stores the model."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aia_jax.data.feature_cache import weights_digest
from aia_jax.inference.review.imported import LabelledFeatures
from aia_jax.inference.review.photo_features import PhotoFeatures
from aia_jax.inference.review.retraining import TrainingRows, fit_head, initial_head, join_rows
from aia_jax.metrics.annotation import annotation_metrics
from aia_jax.metrics.thresholds import load_thresholds, refit_mcc
from aia_jax.report.model_card import model_card
from aia_jax.tasks.text_encoder import TextEncoder
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import os_errors_as_input_errors, write_bytes
from aia_jax.utils.messages import format_count
from aia_jax.utils.model_folders import CARD, THRESHOLDS, model_folder, read_about
from aia_jax.weights.initialization import merge_labels
from aia_jax.weights.model_folder import write_model_folder

MODEL = "model"
_OLD, _NEW = ".model-old", ".model-new"


class Model(NamedTuple):
    """An annotator with the thresholds of its labels, float64 `[C]`."""

    annotator: TrainedAnnotator
    thresholds: np.ndarray


class CorrectedPhotos(NamedTuple):
    """The photos of a review.

    Attributes:
        features: features of all N photos.
        answers: the answers about photos, `{row: {label: answer}}`.
        paths: real paths of these photos, `{row: path}`.
        added: labels that the run does not know.
    """

    features: PhotoFeatures
    answers: Mapping[int, Mapping[str, bool]]
    paths: Mapping[int, str]
    added: Sequence[str]


def load_retrained(folder: Path, run: TrainedAnnotator, batch_size: int) -> Model | None:
    """Loads the retrained model in `folder`, or returns None if there is none, or it is of another run than `run`.

    Raises InputError if the model is damaged.
    """
    path, old = folder / MODEL, folder / _OLD
    if old.is_dir() and not path.exists():  # a process was killed while it replaced the model
        old.rename(path)
    if not path.is_dir():
        return None
    try:
        if not model_folder(path):
            raise InputError(f"{path} holds no model")
        if read_about(path).get("review", {}).get("run") != weights_digest(run.arrays()):
            return None
        annotator = TrainedAnnotator.from_run(path, batch_size, fold=False)
        return Model(annotator, load_thresholds(path / THRESHOLDS, annotator.labels))
    except InputError as error:
        raise InputError(f"{error}; or delete {path}, and train again: the answers are elsewhere") from None


def retrain_model(
    folder: Path,
    data: tuple[LabelledFeatures, LabelledFeatures],
    run: Model,
    current: Model,
    photos: CorrectedPhotos,
    progress: Callable[[float], None],
) -> tuple[Model, dict[str, Any]]:
    """Trains the head with imported labels and answers, fits thresholds, and writes the model to `folder`.

    Args:
        data: the results of `read_imported` for `run`.
        run: the run's best epoch.
        current: the model before, for the report.
        progress: called with the finished fraction, 0 to 1.

    Returns:
        The model, and a report: `photos` and `answers` that were used, `imported_photos`, `labels` (a dict for each
        label: `label`, `confirmed`, `rejected`, `imported`, `threshold_before` and `threshold_after`), `changed_photos`
        (photos whose selected labels changed), `gained` and `lost` (`{label: photos}`), `metrics` (`split`, `photos`,
        `before`, `after`: on photos of the run that were not trained on) and `seconds`.

    Raises:
        InputError: the folder cannot be written.
    """
    start = time.perf_counter()
    (imported, held), config = data, run.annotator.config
    confirmed = Counter(label for given in photos.answers.values() for label, answer in given.items() if answer)
    rejected = Counter(label for given in photos.answers.values() for label, answer in given.items() if not answer)
    labels = (*run.annotator.labels, *(label for label in photos.added if confirmed[label]))
    rows = _training_rows(imported, labels, photos)
    fitted = fit_head(config, _first_head(run.annotator, labels), rows, progress)
    before = np.full(len(labels), config.eval.threshold)
    before[: len(run.thresholds)] = run.thresholds
    thresholds = refit_mcc(fitted.scores, rows.targets, rows.known, before)
    arrays = run.annotator.arrays() | fitted.arrays
    stats = run.annotator.channel_stats
    model = Model(TrainedAnnotator(config, labels, arrays, run.annotator.batch_size, stats, fold=False), thresholds)
    _write(folder, model, weights_digest(run.annotator.arrays()), len(photos.answers))
    known = dict(zip(current.annotator.labels, current.thresholds.tolist(), strict=True))
    support = imported.targets.sum(axis=0).tolist() + [0] * len(labels)
    report = {
        "photos": len(photos.answers),
        "answers": sum(map(len, photos.answers.values())),
        "imported_photos": len(imported.targets),
        "labels": [
            {
                "label": label,
                "confirmed": confirmed[label],
                "rejected": rejected[label],
                "imported": support[column],
                "threshold_before": known.get(label),
                "threshold_after": float(thresholds[column]),
            }
            for column, label in enumerate(labels)
        ],
        **_changes(current, model, photos.features),
        "metrics": _metrics(current, model, run.annotator.labels, held, set(photos.paths.values())),
        "seconds": time.perf_counter() - start,
    }
    return model, report


def _training_rows(imported: LabelledFeatures, labels: Sequence[str], photos: CorrectedPhotos) -> TrainingRows:
    columns = {label: column for column, label in enumerate(labels)}
    targets, known = np.zeros((2, len(photos.answers), len(labels)), bool)
    for row, given in enumerate(photos.answers.values()):
        for label, answer in given.items():
            if label in columns:
                targets[row, columns[label]], known[row, columns[label]] = answer, True
    features = np.asarray(photos.features[list(photos.answers)], np.float32)
    return join_rows(imported, len(labels), [photos.paths[row] for row in photos.answers], features, targets, known)


def _first_head(run: TrainedAnnotator, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the first values of the arrays of the head.

    A head that the run trained from random weights on fixed features is trained in the same way again: a second
    training of a trained head overfits, and its scores of the imported photos are too good to fit thresholds to them.
    Other heads start from the run's weights, with random weights for the labels that the run does not know.
    """
    config = run.config
    random = initial_head(config, len(labels), run.num_features)
    known = np.arange(len(run.labels))
    own = {path: value for path, value in run.arrays().items() if path.startswith("head.")}
    arrays = {path: np.array(value) for path, value in merge_labels(random, own, known, known).items()}
    if config.model.head == "text" and (added := labels[len(known) :]):
        encoder = TextEncoder(config.data.cache_dir)
        encoder.tokenizer.check_words(added, "label")
        arrays["head.embeddings"][len(known) :] = encoder.encode(added)["sentence"]
    if config.model.freeze_backbone and not config.init_from:
        arrays |= initial_head(config, len(labels), run.num_features, trainable=True)
    return arrays


def _changes(before: Model, after: Model, features: PhotoFeatures) -> dict[str, Any]:
    """Counts the photos whose selected labels changed, and for each label those that gained and lost it."""
    old, new = (_selected(model, after.annotator.labels, features) for model in (before, after))
    labels = np.array(after.annotator.labels, object)
    counts = [(new & ~old).sum(axis=0), (old & ~new).sum(axis=0)]
    gained, lost = (
        {labels[i]: int(count[i]) for i in np.argsort(-count, kind="stable") if count[i]} for count in counts
    )
    return {"changed_photos": int((old != new).any(axis=1).sum()), "gained": gained, "lost": lost}


def _selected(model: Model, labels: Sequence[str], features: PhotoFeatures) -> np.ndarray:
    """Returns which of `labels` the model selects, bool `[N, C]`. It selects no label that it does not know."""
    scores = model.annotator.score_maps(features)
    columns = {label: column for column, label in enumerate(model.annotator.labels)}
    found = np.zeros((len(features), len(labels)), bool)
    for column, label in enumerate(labels):
        if label in columns:
            found[:, column] = scores[:, columns[label]] > np.float32(model.thresholds[columns[label]])
    return found


def _metrics(
    before: Model, after: Model, labels: Sequence[str], held: LabelledFeatures, corrected: set[str]
) -> dict[str, Any]:
    """Computes metrics of the run's labels on photos of the run that were not trained on and have no answers."""
    rows = np.array([row for row, path in enumerate(held.paths) if not path or path not in corrected], int)
    if not len(rows):
        return {}
    features, count = held.versions[0].take(rows), len(labels)
    found = {}
    for name, (annotator, thresholds) in (("before", before), ("after", after)):
        scores = annotator.score_maps(features)[:, :count]
        found[name] = annotation_metrics(scores, held.targets[rows], np.asarray(thresholds[:count]))
    return {"split": after.annotator.config.eval.split, "photos": len(rows), **found}


def _write(folder: Path, model: Model, run: str, num_photos: int) -> None:
    """Writes the model folder. A killed process leaves the earlier model or this one."""
    annotator = model.annotator
    path, old, new = (folder / name for name in (MODEL, _OLD, _NEW))
    about = {
        "name": MODEL,
        "description": f"Labels photos with {format_count(len(annotator.labels), 'label')}: retrained with answers "
        f"about {format_count(num_photos, 'photo')}.",
        "data": {"name": annotator.config.data.name},
        "measured": {},
        "review": {"run": run},
    }
    with os_errors_as_input_errors(folder, None, "the model is not replaced; make room, and train again"):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            content = {"labels": annotator.labels, "thresholds": model.thresholds, "dtype": "float32"}
            facts = {"channel_stats": [list(values) for values in annotator.channel_stats]}
            written = write_model_folder(new, annotator.config, annotator.arrays(), about=about, facts=facts, **content)
            sizes = {file.name: file.stat().st_size for file in sorted(new.iterdir())}
            write_bytes(new / CARD, model_card(written, annotator.labels, sizes).encode())
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            new.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(new, ignore_errors=True)
