import sys

import pytest

from aia_jax.data import scenes
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


def test_scenes_have_five_captions_and_tensorflow_is_not_needed(tmp_path):
    builder = tfds_builders.Scenes(3, {"test": range(40, 44)}, 16, data_dir=tmp_path)
    tfds_builders.prepare(builder)
    records = list(builder.as_data_source("test", decoders={"image": tfds.decode.SkipDecoding()}))
    assert [record["image_name"].decode() for record in records] == [f"scene_{i:06d}.png" for i in range(40, 44)]
    for index, record in zip(range(40, 44), records, strict=True):
        scene = scenes.draw(3, index, 16)
        assert tuple(caption.decode() for caption in record["captions"]) == scene.captions
        assert tuple(scenes.LABELS[label] for label in record["labels"]) == scene.labels
    assert "tensorflow" not in sys.modules
