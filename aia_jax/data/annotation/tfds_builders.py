"""TFDS builders, one per data set, that write ArrayRecord files without TensorFlow.

    builder = Corel5k({"train": read_annotations("datasets", "corel5k", "train")}, data_dir=...)
    builder.download_and_prepare(file_format="array_record")
    builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})[0]["image"]  # content of the file

Records have the order of the annotation file. Nothing is downloaded: users provide the photos.
"""

import contextlib
import errno
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from aia_jax.data import scenes
from aia_jax.data.annotation.annotations import CUSTOM, Annotations
from aia_jax.utils.errors import InputError


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images as the content of their files, with names and labels. `_example(rows, row)` returns a record.

    Args:
        splits: rows to write, for each split.
        labels: the vocabulary.
        features: further TFDS features.
    """

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE = ""
    CITATION = ""

    def __init__(self, splits: Mapping[str, Any], labels: Sequence[str], features: dict | None = None, **kwargs: Any):
        self._splits, self._labels, self._features = splits, labels, features or {}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
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


class _AnnotatedPhotos(_Builder, skip_registration=True):
    """Photos as the content of their files, with names and labels.

    Args:
        annotations: what to write, for each split, with the same `labels` in all. All photos must exist.
    """

    def __init__(self, annotations: Mapping[str, Annotations], **kwargs: Any):
        super().__init__(annotations, next(iter(annotations.values())).labels, **kwargs)

    def _example(self, rows: Annotations, row: int) -> dict[str, Any]:
        return {
            "image": io.BytesIO(_read_photo(rows.image_paths[row])),
            "image_name": rows.image_names[row],
            "labels": rows.targets[row].nonzero()[0].tolist(),
        }


class Corel5k(_AnnotatedPhotos):
    """Corel-5k: 4,500 training and 499 test photos, 260 labels."""

    HOMEPAGE = "https://www.kaggle.com/datasets/parhamsalar/corel5k"
    CITATION = "Duygulu et al., Object recognition as machine translation, ECCV 2002"


class ESPGame(_AnnotatedPhotos):
    """ESP-Game: 18,689 training and 2,081 test photos, 268 labels."""

    HOMEPAGE = "https://www.kaggle.com/datasets/parhamsalar/espgame"
    CITATION = "von Ahn and Dabbish, Labeling images with a computer game, CHI 2004"


class IAPRTC12(_AnnotatedPhotos):
    """IAPR TC-12: 17,665 training and 1,962 test photos, 291 labels."""

    HOMEPAGE = "https://www.kaggle.com/datasets/parhamsalar/iaprtc12"
    CITATION = "Grubinger et al., The IAPR TC-12 benchmark, OntoImage 2006"


class VG500(_AnnotatedPhotos):
    """VG-500, the 500 most frequent objects of Visual Genome: 82,904 training and 10,000 test photos."""

    HOMEPAGE = "https://homes.cs.washington.edu/~ranjay/visualgenome"
    CITATION = "Chen et al., Learning semantic-specific graph representation, ICCV 2019"


class Custom(_AnnotatedPhotos):
    """A user's own photos, in the layout of `aia import-labels`."""


class Scenes(_Builder):
    """Generated pictures of coloured shapes with labels and five captions each; see `aia_jax.data.scenes`.

    Args:
        seed: seed of the endless sequence of scenes.
        indices: scenes to write, for each split.
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


PHOTO_BUILDERS = {"corel5k": Corel5k, "espgame": ESPGame, "iaprtc12": IAPRTC12, "vg500": VG500, CUSTOM: Custom}


def photo_builder(dataset: str) -> type[_AnnotatedPhotos]:
    """Returns the builder of a data set; one without a class of its own is written as `Custom`."""
    return PHOTO_BUILDERS.get(dataset, Custom)


def prepare(builder: tfds.core.GeneratorBasedBuilder) -> None:
    """Writes all ArrayRecord files of a builder, with progress bars of this project instead of the output of TFDS.

    Raises:
        InputError: a photo cannot be read.
        OSError: the files cannot be written.
    """
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with tempfile.TemporaryDirectory() as no_downloads, contextlib.redirect_stdout(None):
            builder.download_and_prepare(download_config=config, download_dir=no_downloads, file_format="array_record")
    except RuntimeError as error:  # The C++ writer of ArrayRecord does not raise OSError.
        full = os.strerror(errno.ENOSPC)
        raise (OSError(errno.ENOSPC, full) if full in str(error) else error) from None


def _read_photo(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
