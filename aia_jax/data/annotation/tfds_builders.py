"""TFDS builders, one data set each, that write ArrayRecord files and need no TensorFlow.

    builder = Corel5k({"train": read_annotations("datasets", "corel5k", "train")}, data_dir=...)
    builder.download_and_prepare(file_format="array_record")
    builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})[0]["image"]  # the file's bytes

Records stand in the order of the annotation file. Nothing is downloaded: the photos are the user's.
"""

import contextlib
import errno
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from aia_jax.data import scenes
from aia_jax.data.annotation.annotations import CUSTOM, Annotations
from aia_jax.utils.errors import InputError


class _AnnotatedPhotos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Photos as their files' own bytes, their names and labels.

    Args:
        annotations: what to write, by split; `labels` must be the same in all. All photos must exist.
    """

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE = ""
    CITATION = ""

    def __init__(self, annotations: Mapping[str, Annotations], **kwargs: Any):
        self._annotations = annotations
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        labels = next(iter(self._annotations.values())).labels
        return _dataset_info(self, labels, {}, type(self).__doc__, self.HOMEPAGE, self.CITATION)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._annotations}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        annotations = self._annotations[split]
        for row in _progress(len(annotations), f"{self.name} {split}: reading photos"):
            yield (
                row,
                {
                    "image": io.BytesIO(_read_photo(annotations.image_paths[row])),
                    "image_name": annotations.image_names[row],
                    "labels": annotations.targets[row].nonzero()[0].tolist(),
                },
            )


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
    """A user's own photos, as `aia import-labels` lays them out."""


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Pictures of coloured shapes drawn from a seed, with labels and five captions each; see `scenes.py`.

    Args:
        seed: of the endless sequence of scenes.
        indices: which scenes of it are written, by split.
        size: side of the pictures in pixels.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, seed: int, indices: Mapping[str, range], size: int, **kwargs: Any):
        self._seed, self._indices, self._size = seed, indices, size
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        captions = {"captions": tfds.features.Sequence(tfds.features.Text())}
        return _dataset_info(self, scenes.LABELS, captions, type(self).__doc__, "", "")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._indices}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        indices = self._indices[split]
        for row in _progress(len(indices), f"{self.name} {split}: drawing"):
            scene = scenes.draw(self._seed, indices[row], self._size)
            png = io.BytesIO()
            Image.fromarray(scene.image).save(png, "PNG", compress_level=1)
            yield (
                row,
                {
                    "image": io.BytesIO(png.getvalue()),
                    "image_name": f"scene_{indices[row]:06d}.png",
                    "labels": scene.labels,
                    "captions": scene.captions,
                },
            )


PHOTO_BUILDERS = {"corel5k": Corel5k, "espgame": ESPGame, "iaprtc12": IAPRTC12, "vg500": VG500, CUSTOM: Custom}


def prepare(builder: tfds.core.GeneratorBasedBuilder) -> None:
    """Writes all of the builder's ArrayRecord files, with this project's progress bars instead of TFDS's output.

    Raises:
        InputError: a photo cannot be read.
        OSError: the files cannot be written.
    """
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with tempfile.TemporaryDirectory() as no_downloads, contextlib.redirect_stdout(None):
            builder.download_and_prepare(download_config=config, download_dir=no_downloads, file_format="array_record")
    except RuntimeError as error:  # ArrayRecord's writer is C++ and knows no OSError.
        full = os.strerror(errno.ENOSPC)
        raise (OSError(errno.ENOSPC, full) if full in str(error) else error) from None


def _dataset_info(builder, labels, features, description, homepage, citation) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder,
        description=description,
        homepage=homepage,
        citation=citation,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "image_name": tfds.features.Text(),
                "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=labels)),
                **features,
            }
        ),
        disable_shuffling=True,
    )


def _progress(total: int, description: str) -> Iterator[int]:
    return tqdm(range(total), description, unit="img", mininterval=0.5)


def _read_photo(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
