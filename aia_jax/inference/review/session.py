"""A review: a person corrects the labels of photos, and the head of the annotator learns from the answers.

<workdir>/review/corrections.jsonl     the answers; see `corrections`
<workdir>/review/photos/               the features of the photos; see `search_index`
<workdir>/review/pictures.jsonl        small copies of the photos; see `thumbnails`
<workdir>/review/model/                the retrained model, a model folder
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aia_jax.data.annotation.annotations import label_spelling
from aia_jax.data.feature_cache import cast_features, weights_digest
from aia_jax.data.photo_folder import Photo, photo_names, read_photos
from aia_jax.data.photo_rows import PhotoRow, computed_rows
from aia_jax.inference.annotator import check_threshold, read_thresholds
from aia_jax.inference.review.corrections import Corrections
from aia_jax.inference.review.imported import POOLING, LabelledFeatures, imported_counts, read_imported
from aia_jax.inference.review.photo_features import PhotoFeatures
from aia_jax.inference.review.ranking import expected_gains, rank_photos, uncertainties
from aia_jax.inference.review.retrained_model import CorrectedPhotos, Model, load_retrained, retrain_model
from aia_jax.inference.search_index import PhotoIndex
from aia_jax.inference.thumbnails import Thumbnail, ThumbnailStore
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import os_errors_as_input_errors

FOLDER = "review"
_PICTURE_SIDE = 448  # pixels


class ReviewSession(contextlib.ExitStack):
    """Context manager for the review of the photos in a folder with the annotator of a run.

    All methods can be called from several threads. N photos can be read, and there are C labels.

    Args:
        workdir: folder of the run, or a model folder. The files of the review are in its folder `review`.
        images: folder of the photos.
        batch_size: number of photos in a batch of the model.
        num_workers: number of threads that decode photos; 0: one for each core.

    Attributes:
        names: names of the N photos, relative to `images`.
        labels: names of the C labels: the vocabulary of the run, and then the labels that the person added.
        scores: float32 `[N, C]`, 0 to 1. The scores of an added label that the model does not know yet are NaN.
        thresholds: float64 `[C]`. A label is selected if its score is above its threshold.
        problems: `{name: reason}` of the photos that cannot be read.

    Raises:
        InputError: there is no annotator in `workdir`, another process reviews it, or its files are damaged.
    """

    def __init__(self, workdir: Path, images: Path, *, batch_size: int = 32, num_workers: int = 0):
        super().__init__()
        self._images, self._num_workers, self._folder = images, num_workers, workdir / FOLDER
        self._workdir, self._lock, self._retraining = workdir, threading.RLock(), threading.Lock()
        with contextlib.ExitStack() as opened:
            threshold = check_threshold(None, workdir)
            annotator = TrainedAnnotator.from_run(workdir, batch_size, fold=False)
            if annotator.config.model.get("score", "sigmoid") != "sigmoid":
                raise InputError(f"{workdir} chooses one label for each photo, and cannot be retrained; name a run")
            self._corrections = opened.enter_context(Corrections(self._folder, images))
            self._pictures = opened.enter_context(ThumbnailStore(self._folder))
            thresholds = np.broadcast_to(read_thresholds(threshold, annotator), len(annotator.labels))
            self._run = Model(annotator, thresholds)
            self._model = load_retrained(self._folder, annotator, batch_size) or self._run
            self.enter_context(opened.pop_all())
        self.names: tuple[str, ...] = ()
        self.problems: dict[str, str] = {}
        self._features = PhotoFeatures()
        self._data: tuple[LabelledFeatures, LabelledFeatures] | None = None  # of the run; see `read_imported`
        self._imported = imported_counts(annotator)
        self._confirmed: np.ndarray | None = None  # known photos of each label; None: count them again
        self.labels: tuple[str, ...] = annotator.labels
        self._show(np.zeros((0, len(self._model.annotator.labels)), np.float32))

    def load(self, progress: Callable[[int, int], None]) -> None:
        """Computes features and small pictures of photos that are new or have changed, and the scores of all photos.

        An error that `progress` raises stops the computation, and so does Ctrl-C. The next call continues.

        Args:
            progress: called with the number of photos that are done, and the number of all photos.

        Raises:
            InputError: the folder has no photos, none of them can be read, or the disk is full.
        """
        names = photo_names(self._images)
        annotator = self._run.annotator
        config, arrays = annotator.config, annotator.arrays()
        backbone = {path: value for path, value in arrays.items() if path.startswith("backbone.")}
        kind = "means" if self._pools else f"maps {config.data.feature_dtype}"
        model = f"{annotator.image_size} px {weights_digest(backbone)} {config.model.to_dict()} {kind}"
        index = PhotoIndex(self._folder / "photos", self._images, model, ("features",))
        with os_errors_as_input_errors(self._folder, None, "after you free space, the same command continues"):
            update = index.update(names, self._rows, progress)
        places = {name: place for place, name in enumerate(index.names)}
        if not places:
            listed = "; ".join(f"{name}: {problem}" for name, problem in list(update.problems.items())[:3])
            raise InputError(f"none of the {len(names):,} photos in {self._images} can be read: {listed}")
        rows = [part["features"][row] for part, live in index.parts() for row in live]
        usable = tuple(name for name in names if name in places)
        features = PhotoFeatures([rows[places[name]] for name in usable])
        scores = self._model.annotator.score_maps(features)
        with self._lock:
            self.names, self.problems, self._features = usable, update.problems, features
            self._show(scores)
        progress(len(names), len(names))

    @property
    def answers(self) -> dict[str, dict[str, bool]]:
        """A copy of the answers, `{name: {label: answer}}`."""
        with self._lock:
            return {name: dict(answers) for name, answers in self._corrections.answers.items()}

    def order(self, label: str | None = None, *, by_threshold: bool = False) -> list[int]:
        """Returns the numbers of all photos, first those whose answers are expected to improve the model most.

        With `by_threshold`, the photos with the score nearest to the threshold of its label come first. With `label`,
        only this label counts. See `ranking`. Raises InputError if the label is unknown.
        """
        with self._lock:
            gains = self._gains()
            if by_threshold:
                gains = np.where(np.isfinite(gains), uncertainties(self.scores, self.thresholds), -np.inf)
            if label is not None:
                if label not in self.labels:
                    raise InputError(f"{label!r} is not one of the {len(self.labels):,} labels")
                column = self.labels.index(label)
                gains = gains[:, column : column + 1]
        return (np.argsort(-gains.max(axis=1), kind="stable") if by_threshold else rank_photos(gains)).tolist()

    def questions(self, photo: int, limit: int) -> list[int]:
        """Returns the numbers of at most `limit` labels of a photo without an answer, in the order of `ranking`."""
        with self._lock:
            gains = self._gains([photo])[0]
        order = np.argsort(-gains, kind="stable")[:limit]
        return order[np.isfinite(gains[order])].tolist()

    def answer(self, photos: Sequence[int], label: str, answer: bool | None) -> None:
        """Stores an answer about a label of photos: True, False, or None, which takes an answer back.

        Raises InputError if the label is not valid, is a known label in another spelling, or cannot be stored.
        """
        with self._lock:
            if bad := [photo for photo in photos if not 0 <= photo < len(self.names)]:
                raise InputError(f"there is no photo {bad[0]}; there are {len(self.names):,}")
            if isinstance(label, str) and label not in self.labels:
                same = next((known for known in self.labels if label_spelling(known) == label_spelling(label)), None)
                if same:
                    raise InputError(f"{label!r} is the label {same!r} in another spelling; use {same!r}")
            self._corrections.answer([self.names[photo] for photo in photos], label, answer)
            self._add_labels()

    def undo(self) -> dict[str, Any] | None:
        """Undoes the last action. Returns its `images`, `label` and `answer`; None if there is no action left."""
        with self._lock:
            undone = self._corrections.undo()
            self._add_labels()
            return undone

    def picture(self, photo: int) -> bytes:
        """Returns a small copy of a photo as WebP. Raises InputError if the photo cannot be read any more."""
        name = self.names[photo]
        with self._lock:
            stored = self._pictures.get(name)
        if stored and stored.webp:
            return stored.webp
        with contextlib.closing(self._read([self._images / name])) as photos:
            found = next(photos)
        if found.problem:
            raise InputError(f"{self._images / name}: {found.problem}")
        return found.picture

    def progress(self) -> dict[str, Any]:
        """Returns the numbers of photos, answered photos and answers, and the added labels.

        `elsewhere` is the number of answers about other photos, for example of another folder. The other numbers leave
        them out, and so does `retrain`.
        """
        given, names = self.answers, set(self.names)
        here = [each for name, each in given.items() if name in names]
        answers = [answer for each in here for answer in each.values()]
        return {
            "photos": len(names),
            "answered_photos": len(here),
            "elsewhere": sum(map(len, given.values())) - len(answers),
            "answers": len(answers),
            "confirmed": sum(answers),
            "rejected": len(answers) - sum(answers),
            "added_labels": list(self.labels[len(self._run.annotator.labels) :]),
        }

    def retrain(self, progress: Callable[[float], None]) -> dict[str, Any]:
        """Trains the head with the imported labels and the answers so far, and replaces scores and thresholds.

        Answers can be given at the same time; the next training uses them. If this method is interrupted, nothing
        changes.

        Args:
            progress: called with the finished fraction, 0 to 1.

        Returns:
            See `retrain_model`.

        Raises:
            InputError: the data of the run are gone, there is no answer, or a training is running.
        """
        if not self._retraining.acquire(blocking=False):
            raise InputError("a training is running; wait until it ends")
        try:
            with self._lock:
                rows = {name: row for row, name in enumerate(self.names)}
                answers = {rows[name]: given for name, given in self.answers.items() if name in rows}
                added = self.labels[len(self._run.annotator.labels) :]
                features, current = self._features, self._model
            if not answers:
                raise InputError("there are no answers yet about these photos; confirm or reject a few labels first")
            self._data = self._data or read_imported(self._workdir, self._run.annotator)
            paths = {row: os.path.realpath(self._images / self.names[row]) for row in answers}
            photos = CorrectedPhotos(features, answers, paths, added)
            model, report = retrain_model(self._folder, self._data, self._run, current, photos, progress)
            scores = model.annotator.score_maps(features)
            with self._lock:
                self._model = model
                self._show(scores)
            return report
        finally:
            self._retraining.release()

    @property
    def _pools(self) -> bool:
        return self._run.annotator.config.model.head in POOLING

    def _read(self, paths: Sequence[Path]) -> Iterator[Photo]:
        """Reads photos, and stores their small pictures."""
        size, workers = self._run.annotator.image_size, self._num_workers
        options = {"upright": True, "draft": True, "picture_side": _PICTURE_SIDE}
        reading = read_photos(paths, size, num_workers=workers, **options)
        with contextlib.closing(reading) as photos:
            for path, photo in zip(paths, photos, strict=True):
                if photo.picture:
                    with self._lock:
                        self._pictures.add(os.path.relpath(path, self._images), Thumbnail(photo.picture))
                yield photo

    def _rows(self, names: Sequence[str]) -> Iterator[list[PhotoRow]]:
        photos = self._read([self._images / name for name in names])
        return computed_rows(names, photos, self._compute, self._run.annotator.batch_size)

    def _compute(self, images: np.ndarray) -> dict[str, np.ndarray]:
        maps = self._run.annotator.maps(images)
        if self._pools:
            return {"features": maps.mean(axis=(1, 2), keepdims=True)}
        return {"features": cast_features(maps, self._run.annotator.config.data.feature_dtype)}

    def _show(self, scores: np.ndarray) -> None:
        """Replaces `labels`, `scores` and `thresholds`. `scores` `[N, K]` are those of the model's labels."""
        labels = tuple(dict.fromkeys((*self.labels, *self._model.annotator.labels)))
        columns = [labels.index(label) for label in self._model.annotator.labels]
        whole = np.full((len(scores), len(labels)), np.nan, np.float32)
        whole[:, columns] = scores
        thresholds = np.full(len(labels), self._run.annotator.threshold, np.float64)
        thresholds[columns] = self._model.thresholds
        self.scores, self.thresholds = whole, thresholds
        self.labels = labels  # last, so that each label has a column
        self._add_labels()

    def _add_labels(self) -> None:
        """Adds columns for labels that the person added since the last call. The numbers of labels never change."""
        self._confirmed = None
        new = tuple(label for label in self._corrections.labels if label not in self.labels)
        if new:
            unknown = np.full((len(self.scores), len(new)), np.nan, np.float32)
            self.scores = np.concatenate([self.scores, unknown], axis=1)
            self.thresholds = np.concatenate([self.thresholds, np.full(len(new), self._run.annotator.threshold)])
            self.labels = (*self.labels, *new)

    def _gains(self, photos: Sequence[int] | None = None) -> np.ndarray:
        """Returns the expected gains of the labels of photos, `[M, C]`. They are -infinity where answered."""
        rows = range(len(self.names)) if photos is None else photos
        columns = {label: column for column, label in enumerate(self.labels)}
        if self._confirmed is None:
            self._confirmed = np.zeros(len(self.labels), int)
            self._confirmed[: len(self._imported)] = self._imported
            for given in self._corrections.answers.values():
                for label, answer in given.items():
                    self._confirmed[columns[label]] += answer
        gains = expected_gains(self.scores if photos is None else self.scores[photos], self._confirmed)
        for place, row in enumerate(rows):
            answered = self._corrections.answers.get(self.names[row], ())
            gains[place, [columns[label] for label in answered]] = -np.inf
        return gains
