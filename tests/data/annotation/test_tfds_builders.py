import sys

import pytest

from aia_jax.data.annotation.annotations import FOLDERS, read_annotations
from aia_jax.utils.errors import InputError
from tests.helpers.photos import LABELS, make_dataset

pytestmark = pytest.mark.extras
tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed: pip install -e '.[tfds]'")
tfds_builders = pytest.importorskip("aia_jax.data.annotation.tfds_builders")


@pytest.mark.parametrize("dataset", [*FOLDERS, "other"])
def test_records_are_the_files_in_order_and_a_missing_photo_is_named(tmp_path, dataset, capsys):
    photos = make_dataset(tmp_path)
    annotations = read_annotations(tmp_path, "corel5k", "train")
    builder, second = (
        tfds_builders.AnnotatedPhotos(dataset, {"train": annotations}, data_dir=tmp_path / name)
        for name in ("records", "second")
    )
    assert builder.name == {"espgame": "esp_game", "other": "custom"}.get(dataset, dataset)
    tfds_builders.prepare(builder)
    records = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert [record["image_name"].decode() for record in records] == list(annotations.image_names)
    assert [list(record["labels"]) for record in records] == [[0], [1], [2], [0], []]
    assert [record["image"] for record in records] == [(photos / f"{i}.jpeg").read_bytes() for i in range(5)]
    assert builder.info.features["labels"].feature.names == LABELS
    assert capsys.readouterr().out == ""
    (photos / "3.jpeg").unlink()
    with pytest.raises(InputError, match=r"3\.jpeg cannot be read: No such file"):
        tfds_builders.prepare(second)
    assert "tensorflow" not in sys.modules


def test_shards_have_a_limited_size_and_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_builders, "_SHARD_BYTES", 4000)
    photos = make_dataset(tmp_path, 30)
    annotations = read_annotations(tmp_path, "corel5k", "train")
    builder, second = (
        tfds_builders.AnnotatedPhotos("corel5k", {"train": annotations}, data_dir=tmp_path / name)
        for name in ("records", "second")
    )
    tfds_builders.prepare(builder)
    total = sum(path.stat().st_size for path in photos.iterdir())
    assert len(builder.info.splits["train"].shard_lengths) == total // 4000 + 1 > 2
    records = tfds_builders.record_source(builder, "train")
    assert [record["image_name"].decode() for record in records] == list(annotations.image_names)
    for number in (2, 29):
        (photos / f"{number}.jpeg").write_bytes(b"")
    with pytest.raises(InputError, match=r"(?s)2 photo\(s\) cannot be used:.*2\.jpeg: the file is empty.*29\.jpeg: "):
        tfds_builders.prepare(second)
    assert "tensorflow" not in sys.modules
