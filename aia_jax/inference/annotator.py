"""Labels of one's own photos: in Python, or of many files, with the devices kept busy."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from aia_jax.data.image_decoding import decode_image, resize_image
from aia_jax.data.photo_folder import Photo, read_photos
from aia_jax.inference.thumbnails import Thumbnail
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.training.prediction import fetch_outputs
from aia_jax.utils.errors import InputError

Labels = tuple[tuple[str, float], ...]  # label and score, the highest first
_MOST_MAPS = 24  # of a picture
OneImage = str | os.PathLike | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Annotation:
    """What an annotator says of N images.

    Attributes:
        labels: of each image its labels and their scores, the highest first.
        scores: float32 `[N, C]`, 0 to 1, of every label in the order of `PhotoAnnotator.labels`.
        attention: float32 `[N, C, h, w]`, where each label looks; None if the head does not attend.
    """

    labels: tuple[Labels, ...]
    scores: np.ndarray
    attention: np.ndarray | None


class AnnotatedPhoto(NamedTuple):
    """A file's labels, and its picture with their maps if that was asked for."""

    labels: Labels
    picture: Thumbnail | None


class PhotoAnnotator:
    """Chooses labels by their scores.

    Args:
        annotator: whose scores.
        threshold: a label is chosen where its score is above it, as in evaluation; one for all, or `[C]`.
        top: how many labels an image gets at most; None: all that are above.

    Attributes:
        labels: the vocabulary, C names.
        batch_size: images computed at once.
    """

    def __init__(self, annotator: TrainedAnnotator, threshold: float | np.ndarray, top: int | None = None):
        self._annotator, self._top = annotator, top
        self.labels = annotator.labels
        self._places = {name: place for place, name in enumerate(self.labels)}
        self.batch_size = annotator.batch_size
        self._thresholds = np.broadcast_to(np.asarray(threshold, np.float32), len(self.labels))

    @property
    def settings(self) -> dict[str, Any]:
        """All that the labels depend on beside the photos."""
        return {
            "model": self._annotator.settings,
            "labels": self.labels,
            "thresholds": self._thresholds.tolist(),
            "top": self._top,
        }

    def __call__(self, images: OneImage | Sequence[OneImage]) -> Annotation:
        """Annotates images; give some hundreds at a time, attention takes memory.

        Args:
            images: one or several: paths, PIL images, or arrays uint8 `[H, W, 3]` or `[H, W]`. EXIF orientation is
                honoured.

        Raises:
            InputError: an image that cannot be read; the message names it.
        """
        given = [images] if _is_one(images) else list(images)
        with contextlib.closing(fetch_outputs(self._explained(given))) as batches:
            found = [{name: rows[:number] for name, rows in outputs.items()} for number, outputs in batches]
        whole = {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}
        return Annotation(self._choose(whole["scores"]), whole["scores"], whole.get("attention"))

    def annotate(
        self, paths: Sequence[str | Path], num_workers: int, *, picture_side: int = 0
    ) -> Iterator[list[AnnotatedPhoto | str]]:
        """Annotates files in order, a batch at a time; memory holds a few batches. Close it at the end.

        Args:
            num_workers: processes that decode; 0: threads of this one.
            picture_side: pixels of the longer side of the photos' pictures; 0: no pictures.

        Returns:
            Iterator over batches: of each file its labels and picture, or why it cannot be read.

        Raises:
            InputError: the model gives scores that are not finite.
        """
        size = self._annotator.image_size
        reading = read_photos(paths, size, num_workers=num_workers, upright=True, picture_side=picture_side)
        with contextlib.closing(reading) as photos:
            for facts, outputs in fetch_outputs(self._predicted(photos, illustrated=bool(picture_side))):
                labels = self._choose(outputs["scores"][: len(facts)])
                heat = outputs.get("heat", itertools.repeat(None))
                yield [
                    problem or AnnotatedPhoto(chosen, self._picture(webp, chosen, maps))
                    for (problem, webp), chosen, maps in zip(facts, labels, heat, strict=False)
                ]

    def _explained(self, images: list[OneImage]) -> Iterator[tuple[int, dict[str, jax.Array]]]:
        size, batch_size = self._annotator.image_size, self.batch_size
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(images) or 1, batch_size):
                numbers = range(start, min(start + batch_size, len(images)))
                decoded = list(pool.map(lambda number: _decoded(images[number], number, size), numbers))
                rows = np.asarray(decoded, np.uint8).reshape(-1, size, size, 3)
                yield len(rows), self._annotator.predict(rows, explain=True)

    def _predicted(
        self, photos: Iterator[Photo], *, illustrated: bool
    ) -> Iterator[tuple[list[tuple[str, bytes]], dict[str, jax.Array]]]:
        predict = self._annotator.illustrate if illustrated else self._annotator.predict
        while batch := list(itertools.islice(photos, self.batch_size)):
            facts = [(photo.problem, photo.picture) for photo in batch]
            yield facts, predict(np.stack([photo.image for photo in batch]))

    def _picture(self, webp: bytes, labels: Labels, maps: np.ndarray | None) -> Thumbnail | None:
        if not webp:
            return None
        if maps is None:
            return Thumbnail(webp)
        names = tuple(name for name, _ in labels[:_MOST_MAPS])
        return Thumbnail(webp, names, maps[[self._places[name] for name in names]])

    def _choose(self, scores: np.ndarray) -> tuple[Labels, ...]:
        if not np.isfinite(scores).all():
            raise InputError("the model gives scores that are not finite; its weights are damaged or diverged")
        return tuple(map(self._choose_one, scores))

    def _choose_one(self, scores: np.ndarray) -> Labels:
        order = np.argsort(-scores, kind="stable")
        chosen = order[scores[order] > self._thresholds[order]][: self._top]
        # The shortest number that is this float32.
        return tuple((self.labels[label], float(str(scores[label]))) for label in chosen)


def _is_one(images: OneImage | Sequence[OneImage]) -> bool:
    return isinstance(images, str | os.PathLike | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4)


def _decoded(image: OneImage, number: int, size: int) -> np.ndarray:
    try:
        if isinstance(image, Image.Image):
            return resize_image(image, size, upright=True)
        if isinstance(image, np.ndarray):
            return resize_image(_from_array(image), size)
        if not isinstance(image, str | os.PathLike):
            raise InputError(f"must be a path, a PIL image or an array, found {type(image).__name__}")
        return decode_image(Path(image).read_bytes(), size, upright=True)
    except (InputError, OSError) as error:
        name = image if isinstance(image, str | os.PathLike) else f"images[{number}]"
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: {reason}") from None


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise InputError(f"an array must be uint8 [H, W, 3] or [H, W], found {pixels.dtype} {list(pixels.shape)}")
    return Image.fromarray(pixels)
