"""Thumbnails on disk are read as they were written, also after an interruption."""

import numpy as np
import pytest

from aia_jax.inference.thumbnails import PICTURES, Thumbnail, ThumbnailStore

MAPS = np.random.default_rng(0).integers(0, 256, (2, 3, 5), dtype=np.uint8)


def same(found, wanted):
    return found.webp == wanted.webp and found.labels == wanted.labels and np.array_equal(found.maps, wanted.maps)


def test_thumbnails_are_read_as_written(tmp_path):
    pictures = {
        "a\n\udcff.jpg": Thumbnail(b"webp", ("sea", "<sky>"), MAPS),
        "without.jpg": Thumbnail(b"\0\xff"),
        "no labels.jpg": Thumbnail(b"x", (), np.zeros((0, 3, 5), np.uint8)),
    }
    with ThumbnailStore(tmp_path) as store:
        for name, picture in pictures.items():
            store.add(name, picture)
        assert store.get("none.jpg") is None
    with ThumbnailStore(tmp_path) as store:
        assert all(name in store and same(store.get(name), picture) for name, picture in pictures.items())
        store.add("without.jpg", pictures["no labels.jpg"])
        assert same(store.get("without.jpg"), pictures["no labels.jpg"])


@pytest.mark.parametrize(
    "damage",
    [
        *(b'{"image": "b.jpg", "webp": "', b'{"image": "b.jpg"}\n', b"[]\n", b"\xff\xfe\n"),
        b'{"image": "b.jpg", "webp": "", "labels": ["sea"], "shape": [2, 2], "maps": "AAAA"}\n',  # maps of another size
    ],
)
def test_incomplete_and_damaged_lines_are_ignored(tmp_path, damage):
    with ThumbnailStore(tmp_path) as store:
        store.add("a.jpg", Thumbnail(b"a", ("sea", "sky"), MAPS))
    with (tmp_path / PICTURES).open("ab") as file:
        file.write(damage)
    with ThumbnailStore(tmp_path) as store:
        assert "a.jpg" in store
        assert "b.jpg" not in store
        store.add("b.jpg", Thumbnail(b"b"))
    with ThumbnailStore(tmp_path) as store:
        assert (store.get("a.jpg").webp, store.get("b.jpg").webp) == (b"a", b"b")
