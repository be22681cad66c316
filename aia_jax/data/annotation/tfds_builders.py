"""A TFDS builder that writes annotated photos to ArrayRecord files, without TensorFlow.

    builder = AnnotatedPhotos("corel5k", {"train": read_annotations("datasets", "corel5k", "train")}, data_dir=...)
    prepare(builder)
    record_source(builder, "train")[0]["image"]  # bytes of the photo

Records have the order of the annotation file. The builder downloads nothing, because users provide the photos.
"""

import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from aia_jax.data.annotation.annotations import CUSTOM, FOLDERS, Annotations
from aia_jax.data.image_decoding import decode_image
from aia_jax.data.pipeline import map_ahead
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import list_problems

_CHECKED_SIZE = 32  # pixels; a photo is decoded at its full size, and then resized to this size
_SHARD_BYTES = 256 << 20  # TFDS keeps a shard in memory until it is written


class AnnotatedPhotos(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes a record for each photo: the bytes of its file, its name and its labels.

    TFDS writes shard after shard. Its `GeneratorBasedBuilder` would need TensorFlow for more than 1 GB of photos.

    Args:
        dataset: name of the data set. A data set that is not public gets the name "custom" in TFDS.
        annotations: the annotations of each split. All splits have the same `labels`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, dataset: str, annotations: Mapping[str, Annotations], **kwargs: Any):
        self.name = {"espgame": "esp_game"}.get(dataset, dataset if dataset in FOLDERS else CUSTOM)
        self._annotations = annotations
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        labels = next(iter(self._annotations.values())).labels
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_name": tfds.features.Text(),
            "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=labels)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Callable]]:
        return {split: self._shards(split) for split in self._annotations}

    def _shards(self, split: str) -> list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]:
        """Returns a function for each shard. The functions are called in order, and yield the next records."""
        ends = itertools.accumulate(map(_num_bytes, self._annotations[split].image_paths))
        counts = [len(list(rows)) for _, rows in itertools.groupby(ends, lambda end: end // _SHARD_BYTES)]
        records = self._generate_examples(split)
        return [*(partial(itertools.islice, records, count) for count in counts[:-1]), lambda: records]

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        rows, problems = self._annotations[split], []
        photos = map_ahead(_read_photo, rows.image_paths, 0)
        bar = tqdm(photos, f"{self.name} {split}: writing", len(rows), unit="img", mininterval=0.5)
        for row, photo in enumerate(bar):
            if isinstance(photo, str):
                problems.append(photo)
            elif not problems:
                labels = rows.targets[row].nonzero()[0].tolist()
                yield row, {"image": io.BytesIO(photo), "image_name": rows.image_names[row], "labels": labels}
        if problems:
            listed = list_problems(problems)
            raise InputError(f"{self.name} {split}: {len(problems):,} photo(s) cannot be used:{listed}")


def prepare(builder: AnnotatedPhotos) -> None:
    """Writes all ArrayRecord files of a builder. Hides the output of TFDS, because the builder shows a progress bar.

    Raises:
        InputError: photos cannot be read or decoded. The message lists the photos.
        OSError: the files cannot be written.
    """
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with tempfile.TemporaryDirectory() as no_downloads, contextlib.redirect_stdout(None):
        builder.download_and_prepare(download_config=config, download_dir=no_downloads, file_format="array_record")


def record_source(builder: AnnotatedPhotos, split: str) -> Sequence[dict[str, Any]]:
    """Returns the records of a split, in order. `image` is the bytes of a photo. Indexing reads one record."""
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _num_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_photo(path: Path) -> bytes | str:
    """Returns the bytes of a photo, or the reason why it cannot be read or decoded."""
    try:
        data = path.read_bytes()
        decode_image(data, _CHECKED_SIZE)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except InputError as error:
        return f"{path}: {error}"
    return data
