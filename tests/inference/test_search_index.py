"""The index of a folder of photos: updates compute only what changed, and survive damage and interruptions."""

import json
import os
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image

from aia_jax.data.mapped_rows import RowWriter
from aia_jax.data.photo_folder import photo_names
from aia_jax.data.photo_rows import PhotoRow, local_rows
from aia_jax.inference import index_parts, search_index
from aia_jax.inference.search_index import PhotoIndex
from aia_jax.utils.errors import InputError

ALL = {f"sub/{number}.png": number for number in range(7)}


def paint(path, red):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 0, 0)).save(path)


class Model:
    """A model that returns the red value of each photo. Counts the photos, and can stop after some of them."""

    image_size, batch_size, digest = 4, 3, "a model"

    def __init__(self, stop_after=None):
        self.seen, self.stop_after = 0, stop_after

    def compute(self, images):
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        return {"red": images[:, 0, 0, 0].astype(np.int64)}


def update(path, folder, model=None, name="a model"):
    """Updates the index; returns it, the changes, and the number of computed photos."""
    model = model or Model()
    index = PhotoIndex(path, folder, name)
    found = index.update(photo_names(folder), partial(local_rows, folder, model=model, num_workers=0))
    return index, found, model.seen


def reds(index):
    rows = [arrays["red"][rows] for arrays, rows in index.parts()]
    return dict(zip(index.names, np.concatenate(rows).tolist() if rows else [], strict=True))


@pytest.fixture
def folder(tmp_path):
    for name, red in ALL.items():
        paint(tmp_path / "photos" / name, red)
    return tmp_path / "photos"


def test_a_second_update_computes_only_new_and_changed_photos(tmp_path, folder):
    index, found, seen = update(tmp_path / "index", folder)
    assert (found.new, found.changed, found.gone, found.rebuilt, seen) == (7, 0, 0, "", 7)
    assert reds(index) == ALL
    assert update(tmp_path / "index", folder)[2] == 0
    paint(folder / "new.png", 100)
    paint(folder / "sub" / "3.png", 33)
    os.utime(folder / "sub" / "3.png", ns=(1, 1))
    (folder / "sub" / "5.png").unlink()
    index, found, seen = update(tmp_path / "index", folder)
    assert (found.new, found.changed, found.gone, seen) == (1, 1, 1, 2)
    expected = ALL | {"new.png": 100, "sub/3.png": 33}
    del expected["sub/5.png"]
    assert reds(index) == expected


def test_another_model_rebuilds_the_index_and_says_so(tmp_path, folder):
    update(tmp_path / "index", folder)
    index, found, seen = update(tmp_path / "index", folder, name="another")
    assert (found.rebuilt, seen) == ("it was made by another model", 7)
    assert len(reds(index)) == 7
    assert len(list((tmp_path / "index").glob("*rows-*"))) == 1


@pytest.mark.parametrize("content", ["{", "[]", '["a"]', "[1]", "[null]", '[["a"]]', None])
@pytest.mark.parametrize("file", ["photos.npy", "names.npy", "red.npy"])
def test_a_damaged_index_is_rebuilt(tmp_path, folder, content, file):
    update(tmp_path / "index", folder)
    path = next((tmp_path / "index").glob("rows-*")) / file
    path.unlink() if content is None else path.write_text(content)
    index, found, seen = update(tmp_path / "index", folder)
    assert found.rebuilt.startswith("it is damaged (")
    assert (seen, len(reds(index))) == (7, 7)


@pytest.mark.parametrize("content", [b"", b'{"format": "aia_ja', b"\xff", b"[" * 10**5, None])
def test_an_index_with_a_damaged_description_is_rebuilt_if_it_holds_no_other_file(tmp_path, folder, content):
    update(tmp_path / "index", folder)
    about = tmp_path / "index" / "index.json"
    about.unlink() if content is None else about.write_bytes(content)
    (tmp_path / "index" / "mine.txt").touch()
    with pytest.raises(InputError, match="holds other things than an index"):
        update(tmp_path / "index", folder)
    (tmp_path / "index" / "mine.txt").unlink()
    index, found, seen = update(tmp_path / "index", folder)
    assert found.rebuilt == "it is damaged (index.json is missing or cannot be read)"
    assert (seen, len(reds(index))) == (7, 7)
    assert update(tmp_path / "index", folder)[2] == 0


def test_other_files_are_not_touched(tmp_path, folder):
    mine = tmp_path / "mine"
    for name in ("arrows-pics", "rows-2019"):
        (mine / name).mkdir(parents=True)
    with pytest.raises(InputError, match="mine holds other things than an index; --index names an empty or a new"):
        update(mine, folder)
    for content in ('{"mine": 1}', "[]", "index"):
        (mine / "index.json").write_text(content)
        with pytest.raises(InputError, match="holds other things than an index"):
            update(mine, folder)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "index.json").write_text("index")
    with pytest.raises(InputError, match="holds other things than an index"):
        update(tmp_path / "alone", folder)
    update(tmp_path / "index", folder)
    (tmp_path / "index" / "rows-2019").mkdir()
    update(tmp_path / "index", folder, name="another")
    assert (tmp_path / "index" / "rows-2019").is_dir()


def test_unusable_photos_are_reported_each_time(tmp_path, folder):
    (folder / "torn.jpg").write_bytes(b"\xff\xd8")
    (folder / "empty.png").write_bytes(b"")
    (folder / "link.png").symlink_to(tmp_path / "nowhere.png")
    for new, computed in ((7, 7), (0, 0)):
        index, found, seen = update(tmp_path / "index", folder)
        assert sorted(found.problems) == ["empty.png", "link.png", "torn.jpg"]
        assert (found.problems["empty.png"], found.problems["link.png"]) == ("the file is empty", "no such file")
        assert (len(index.names), found.new, seen) == (7, new, computed)


def test_names_may_have_bytes_that_are_not_utf8(tmp_path, folder):
    paint(folder / "x.png", 50)
    os.rename(os.fsencode(folder / "x.png"), os.fsencode(folder) + b"/bad\xff.png")
    index, _, _ = update(tmp_path / "index", folder)
    assert reds(index)[os.fsdecode(b"bad\xff.png")] == 50
    assert update(tmp_path / "index", folder)[2] == 0


def test_rows_may_come_in_any_order_and_count_once(tmp_path, folder):
    """As from a cluster, which may also repeat a row or add that of a photo which was not asked for."""

    def rows(names):
        for name in reversed(names):
            row = PhotoRow(name, "", {"red": np.int64(ALL[name])})
            yield [row, row._replace(arrays={"red": np.int64(99)}), row._replace(name="other.png")]

    index = PhotoIndex(tmp_path / "index", folder, "a model")
    found = index.update(photo_names(folder), rows)
    assert (found.new, found.problems) == (7, {})
    assert reds(index) == ALL


def test_photos_without_a_row_are_computed_by_the_next_update(tmp_path, folder):
    index = PhotoIndex(tmp_path / "index", folder, "a model")
    found = index.update(photo_names(folder), lambda names: ([PhotoRow(name, "torn", None)] for name in names[:2]))
    assert (found.new, list(found.problems.values())) == (0, ["torn", "torn"])
    assert update(tmp_path / "index", folder)[2] == 7


def test_two_simultaneous_updates_write_one_complete_index(tmp_path, folder):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: update(tmp_path / "index", folder), range(2)))
    assert sorted(seen for _, _, seen in found) == [0, 7]
    assert all(len(reds(index)) == 7 for index, _, _ in found)


def test_an_interrupted_update_keeps_the_complete_parts(tmp_path, folder, monkeypatch):
    (tmp_path / "index").mkdir()
    for name in ("index.lock", ".index.json.123"):  # files of an update without a complete part
        (tmp_path / "index" / name).touch()
    monkeypatch.setattr(search_index, "_PART_SIZE", 3)
    with pytest.raises(KeyboardInterrupt):
        update(tmp_path / "index", folder, Model(stop_after=3))
    index, found, seen = update(tmp_path / "index", folder)
    assert (found.new, seen) == (4, 4)
    assert reds(index) == ALL


def test_many_small_parts_are_joined(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(search_index, "_PART_SIZE", 4)
    monkeypatch.setattr(index_parts, "_JOINED", 4)
    for number in range(7, 18):
        paint(folder / "sub" / f"{number}.png", number)
        index, _, _ = update(tmp_path / "index", folder)
    assert reds(index) == {f"sub/{number}.png": number for number in range(18)}
    assert len(list((tmp_path / "index").glob("*rows-*"))) < 10


@pytest.fixture
def tiny_parts(monkeypatch):
    """Parts of one photo; two parts of a size are joined, up to eight photos."""
    monkeypatch.setattr(search_index, "_PART_SIZE", 1)
    monkeypatch.setattr(index_parts, "_JOINED", 2)


def num_rows(path):
    return sorted(len(np.load(file)) for file in path.glob("rows-*/red.npy"))


def test_an_update_joins_parts_of_each_size_up_to_a_largest_one(tmp_path, folder, tiny_parts):
    for number in range(7, 21):
        paint(folder / "sub" / f"{number}.png", number)
    index, _, _ = update(tmp_path / "index", folder)
    assert num_rows(tmp_path / "index") == [1, 4, 8, 8]
    assert reds(index) == {f"sub/{number}.png": number for number in range(21)}
    assert list(index.names) == [index.names[place] for place in range(21)]
    assert (index.names[-1], index.names[3:5]) == (list(index.names)[-1], list(index.names)[3:5])
    with pytest.raises(IndexError):
        index.names[21]


def test_a_part_with_more_outdated_rows_than_others_is_written_again(tmp_path, folder, tiny_parts):
    paint(folder / "sub" / "7.png", 7)
    update(tmp_path / "index", folder)
    assert num_rows(tmp_path / "index") == [8]
    (folder / "sub" / "0.png").unlink()
    assert list(update(tmp_path / "index", folder)[0].names) == [f"sub/{number}.png" for number in range(1, 8)]
    assert num_rows(tmp_path / "index") == [8]
    for number in (1, 2, 4, 7):
        (folder / "sub" / f"{number}.png").unlink()
    index, _, seen = update(tmp_path / "index", folder)
    assert (reds(index), seen) == ({f"sub/{number}.png": number for number in (3, 5, 6)}, 0)
    assert num_rows(tmp_path / "index") == [3]


@pytest.mark.parametrize("at", range(8))
def test_a_kill_while_parts_are_joined_loses_no_photo_and_repeats_none(tmp_path, folder, tiny_parts, monkeypatch, at):
    """The update stops at a deletion of a part: before the joined parts are removed, or after one of them."""
    remove, count = shutil.rmtree, iter(range(100))

    def stop(path, **options):
        if path.exists() and next(count) == at:
            raise KeyboardInterrupt
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        update(tmp_path / "index", folder)
    monkeypatch.setattr(shutil, "rmtree", remove)
    written = {name for part in index_parts.find_parts(tmp_path / "index") for name in part.names()}
    index, found, seen = update(tmp_path / "index", folder)
    assert (seen, found.new) == (7 - len(written), 7 - len(written))
    assert (sorted(index.names), reds(index)) == (sorted(ALL), ALL)
    assert sum(num_rows(tmp_path / "index")) == 7


@pytest.mark.parametrize("at", range(0, 24, 3))
def test_a_full_disk_while_parts_are_written_loses_no_complete_part(tmp_path, folder, tiny_parts, monkeypatch, at):
    extend, count = RowWriter.extend, iter(range(100))

    def fill(self, rows):
        if next(count) == at:
            raise OSError(28, "No space left on device")
        extend(self, rows)

    monkeypatch.setattr(RowWriter, "extend", fill)
    with pytest.raises(OSError, match="No space"):
        update(tmp_path / "index", folder)
    monkeypatch.setattr(RowWriter, "extend", extend)
    written = {name for part in index_parts.find_parts(tmp_path / "index") for name in part.names()}
    index, _, seen = update(tmp_path / "index", folder)
    assert seen == 7 - len(written)
    assert (sorted(index.names), reds(index)) == (sorted(ALL), ALL)


def write_version_1(path, outdated=()):
    """Changes the files of an index to those of version 1, in which some photos are outdated."""
    for part in index_parts.find_parts(path):
        entries = [[name, *state] for name, state in zip(part.names(), part.map()[1][:, 1:].tolist(), strict=True)]
        entries = [None if entry[0] in outdated else entry for entry in entries]
        (part.path / "photos.json").write_text(json.dumps(entries))
        (part.path / "photos.npy").unlink()
        (part.path / "names.npy").unlink()
    about = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(about | {"format": "aia_jax photo index, version 1"}))


def test_an_index_of_version_1_is_continued(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(search_index, "_PART_SIZE", 3)
    paint(folder / "x.png", 50)
    os.rename(os.fsencode(folder / "x.png"), os.fsencode(folder) + b"/bad\xff.png")
    update(tmp_path / "index", folder)
    write_version_1(tmp_path / "index", outdated=("sub/2.png", "sub/6.png"))
    index, found, seen = update(tmp_path / "index", folder)
    assert (found.rebuilt, found.new, seen) == ("", 2, 2)
    assert reds(index) == ALL | {os.fsdecode(b"bad\xff.png"): 50}
    assert not list((tmp_path / "index").glob("*/photos.json"))
    assert update(tmp_path / "index", folder)[2] == 0
    write_version_1(tmp_path / "index")
    next((tmp_path / "index").glob("*/photos.json")).write_text("[")
    assert update(tmp_path / "index", folder)[1].rebuilt.startswith("it is damaged (")


def test_slices_hold_the_rows_of_the_whole_arrays(tmp_path, folder):
    whole = update(tmp_path / "index", folder)[0]
    (folder / "sub" / "1.png").unlink()
    (folder / "sub" / "4.png").unlink()
    (folder / "sub" / "5.png").unlink()
    index, _, _ = update(tmp_path / "index", folder)
    assert len(whole.parts()) == 1
    assert [arrays["red"].tolist() for arrays, _ in index.parts(2)] == [
        [0, 1],
        [2, 3],
        [6],
    ]  # none of 4 and 5 is usable
    assert [rows.tolist() for _, rows in index.parts(2)] == [[0], [0, 1], [0]]
    assert [len(arrays["red"]) for arrays, _ in index.parts()] == [7]
    assert reds(index) == {f"sub/{number}.png": number for number in (0, 2, 3, 6)}


def test_joining_copies_arrays_in_small_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(index_parts, "_BLOCK", 2**16)
    values = np.random.default_rng(0).integers(0, 256, (4, 64, 2**16), np.uint8)  # 4 MB in each part
    photos = [[(f"{part}-{row}", 1, 1) for row in range(64)] for part in range(4)]
    parts = [index_parts.write_part(tmp_path, photos[part], {"array": [values[part]]}) for part in range(4)]
    parts[1].live[::2] = False
    tracemalloc.start()
    joined = index_parts.join_parts(tmp_path, parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert index_parts.find_parts(tmp_path)[0].path == joined.path
    expected = np.concatenate([values[0], values[1, 1::2], values[2], values[3]])
    np.testing.assert_array_equal(joined.map()[0]["array"], expected)
    names = [name for part in (photos[0], photos[1][1::2], photos[2], photos[3]) for name, _, _ in part]
    assert list(joined.names()) == names


def test_derived_arrays_are_added_to_large_parts_and_joined(tmp_path, folder, tiny_parts, monkeypatch):
    monkeypatch.setattr(search_index, "_DERIVED_FROM", 2)

    def updated(derived):
        index = PhotoIndex(tmp_path / "index", folder, "a model", ("red",), derived)
        index.update(photo_names(folder), partial(local_rows, folder, model=Model(), num_workers=0))
        return index

    double = {"double": lambda arrays: 2 * arrays["red"]}
    assert [len(arrays) for arrays, _ in updated(double).parts()] == [2, 2, 1]  # parts of 4, 2 and 1 photos
    paint(folder / "sub" / "7.png", 7)
    assert [len(arrays) for arrays, _ in updated({}).parts()] == [1]  # a part without the array was among those joined
    [(arrays, rows)] = updated(double).parts()
    assert len(rows) == 8
    np.testing.assert_array_equal(arrays["double"], 2 * arrays["red"])


def test_a_photo_in_two_parts_is_found_once(tmp_path, folder):
    update(tmp_path / "index", folder)
    part = next((tmp_path / "index").glob("rows-*"))
    shutil.copytree(part, part.with_name("rows-" + "0" * 12))  # as after a kill between writing and removing parts
    index, _, _ = update(tmp_path / "index", folder)
    assert (sorted(index.names), reds(index)) == (sorted(ALL), ALL)


def test_parts_without_photos_are_removed(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(search_index, "_PART_SIZE", 3)
    update(tmp_path / "index", folder)
    for name in list(ALL)[:4]:
        (folder / name).unlink()
    index, _, _ = update(tmp_path / "index", folder)
    assert reds(index) == {name: ALL[name] for name in list(ALL)[4:]}
    assert len(list((tmp_path / "index").glob("*rows-*"))) == 2


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist; name a folder of photos"):
        update(tmp_path / "index", tmp_path / "photos")
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="has no photos"):
        update(tmp_path / "index", tmp_path / "photos")
