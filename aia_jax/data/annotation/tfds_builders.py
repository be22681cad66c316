"""TFDS builders that write annotated photos or generated scenes to ArrayRecord files, without TensorFlow.

    builder = AnnotatedPhotos("corel5k", {"train": read_annotations("datasets", "corel5k", "train")}, data_dir=...)
    builder.download_and_prepare(file_format="array_record")
    builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})[0]["image"]  # bytes of the photo

Records have the order of the annotation file. The builders download nothing, because users provide the photos.
"""

import contextlib
import errno
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from aia_jax.data import scenes
from aia_jax.data.annotation.annotations import CUSTOM, FOLDERS, Annotations
from aia_jax.utils.errors import InputError


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base class: writes a record for each image. The method `_example` of a subclass makes the record.

    Args:
        splits: dict from split name to the sequence that `_example` reads, with one element for each image.
        labels: the vocabulary.
        features: TFDS features of a record in addition to `image`, `image_name` and `labels`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, splits: Mapping[str, Any], labels: Sequence[str], features: dict | None = None, **kwargs: Any):
        self._splits, self._labels, self._features = splits, labels, features or {}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "image_name": tfds.features.Text(),
                    "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=self._labels)),
                    **self._features,
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = self._splits[split]
        for row in tqdm(range(len(rows)), f"{self.name} {split}: writing", unit="img", mininterval=0.5):
            yield row, self._example(rows, row)


class AnnotatedPhotos(_Builder, skip_registration=True):
    """Writes a record for each photo: the bytes of its file, its name and its labels.

    Args:
        dataset: name of the data set. A data set that is not public gets the name "custom" in TFDS.
        annotations: the annotations of each split. All splits have the same `labels`. All photos must exist.
    """

    def __init__(self, dataset: str, annotations: Mapping[str, Annotations], **kwargs: Any):
        self.name = {"espgame": "esp_game"}.get(dataset, dataset if dataset in FOLDERS else CUSTOM)
        super().__init__(annotations, next(iter(annotations.values())).labels, **kwargs)

    def _example(self, rows: Annotations, row: int) -> dict[str, Any]:
        try:
            photo = rows.image_paths[row].read_bytes()
        except OSError as error:
            raise InputError(f"{rows.image_paths[row]} cannot be read: {error.strerror}") from error
        labels = rows.targets[row].nonzero()[0].tolist()
        return {"image": io.BytesIO(photo), "image_name": rows.image_names[row], "labels": labels}


class Scenes(_Builder):
    """Writes generated pictures of coloured shapes, with labels and five captions each; see `aia_jax.data.scenes`.

    Args:
        seed: random seed. A scene is determined by the seed and the index of the scene.
        indices: for each split, the indices of its scenes.
        size: side of the pictures in pixels.
    """

    def __init__(self, seed: int, indices: Mapping[str, range], size: int, **kwargs: Any):
        self._seed, self._size = seed, size
        captions = tfds.features.Sequence(tfds.features.Text())
        super().__init__(indices, scenes.LABELS, {"captions": captions}, **kwargs)

    def _example(self, rows: range, row: int) -> dict[str, Any]:
        scene = scenes.draw(self._seed, rows[row], self._size)
        png = io.BytesIO()
        Image.fromarray(scene.image).save(png, "PNG", compress_level=1)
        return {
            "image": io.BytesIO(png.getvalue()),
            "image_name": f"scene_{rows[row]:06d}.png",
            "labels": scene.labels,
            "captions": scene.captions,
        }


def prepare(builder: tfds.core.GeneratorBasedBuilder) -> None:
    """Writes all ArrayRecord files of a builder. Hides the output of TFDS, because `_Builder` shows a progress bar.

    Raises:
        InputError: a photo cannot be read.
        OSError: the files cannot be written.
    """
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with tempfile.TemporaryDirectory() as no_downloads, contextlib.redirect_stdout(None):
            builder.download_and_prepare(download_config=config, download_dir=no_downloads, file_format="array_record")
    except RuntimeError as error:  # The C++ writer of ArrayRecord raises this, not OSError, on a full disk.
        full = os.strerror(errno.ENOSPC)
        raise (OSError(errno.ENOSPC, full) if full in str(error) else error) from None
