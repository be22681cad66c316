"""Photos are found in folders, lists, Parquet files and archives, on disks and in object storage."""

import io
import os
import subprocess
import tarfile

import pytest

from aia_jax.data.photo_sources import find_photos, place_reader
from aia_jax.utils.errors import InputError
from tests.helpers.buckets import storage  # noqa: F401  fixture

CONTENT = {"a.jpg": b"first", "b/c.PNG": b"second", "b/é.webp": b"third"}


def write_tar(path, content):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_parquet(path, columns, **options):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def read(source):
    """`{name: bytes}` of all photos of a source, in order."""
    places = find_photos(source).places
    reader = place_reader(places)
    return {place.name: reader(place) for place in places}


@pytest.fixture
def folder(tmp_path):
    for name, data in {**CONTENT, "b/._c.png": b"of a system", "notes.txt": b"no photo"}.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "photos"


def test_a_folder_has_its_photos(folder):
    assert read(folder) == CONTENT
    assert find_photos(folder).root == str(folder)


def test_an_archive_has_its_photos(tmp_path):
    path = write_tar(tmp_path / "a.tar", {**CONTENT, "a.json": b"{}", "._a.jpg": b""})
    assert read(path) == CONTENT


def test_a_folder_of_archives_has_the_photos_of_all(tmp_path):
    write_tar(tmp_path / "1.tar", CONTENT)
    write_tar(tmp_path / "0.tar", {"a.jpg": b"other"})
    assert read(tmp_path) == {"0.tar/a.jpg": b"other", **{f"1.tar/{name}": data for name, data in CONTENT.items()}}


def test_links_in_an_archive_are_photos_and_damaged_archives_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", CONTENT)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        archive.addfile(link)
    assert read(path) == {**CONTENT, "link.jpg": b"first"}
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[1024 + 150] ^= 1  # in the second header
    for content in (whole[:1024], whole[:1300], bytes(damaged), whole + whole):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.tar is not an uncompressed \.tar file, or is truncated or damaged"):
            find_photos(path)
    (tmp_path / "sparse.jpg").touch()
    os.truncate(tmp_path / "sparse.jpg", 1 << 20)
    if subprocess.run(["tar", "-S", "-cf", path, "-C", tmp_path, "sparse.jpg"], capture_output=True).returncode == 0:
        with pytest.raises(InputError, match=r"has a sparse file, sparse\.jpg"):
            find_photos(path)


def test_a_folder_with_photos_and_archives_is_refused(folder):
    write_tar(folder / "0.tar", CONTENT)
    (folder / "._0.tar").write_bytes(b"of a system")
    with pytest.raises(InputError, match=r"has photos, such as a\.jpg, and also 0\.tar; name the file"):
        find_photos(folder)
    for name in CONTENT:
        (folder / name).unlink()
    assert read(folder) == {f"0.tar/{name}": data for name, data in CONTENT.items()}


def test_paths_of_files_are_absolute(folder, monkeypatch):
    write_tar(folder / "b" / "0.tar", CONTENT)
    monkeypatch.chdir(folder.parent)
    for source in ("photos", "photos/b/0.tar"):
        assert all(os.path.isabs(place.file) for place in find_photos(source).places)


def test_a_list_has_relative_and_absolute_paths(folder):
    path = folder / "list.txt"
    (folder / "u\u2028.jpg").write_bytes(b"separator")
    path.write_text(f"b/c.PNG\n\n{folder}/a.jpg\nb/c.PNG\r\nu\u2028.jpg\n")
    assert read(path) == {"b/c.PNG": b"second", f"{folder}/a.jpg": b"first", "u\u2028.jpg": b"separator"}
    path.write_text("a.jpg\nhttps://example.org/b.jpg")
    with pytest.raises(InputError, match=r"names https://example.org/b.jpg; only paths and URLs with gs:// or s3://"):
        find_photos(path)


@pytest.mark.extras
@pytest.mark.parametrize("group", [1, 2, 100])
def test_a_table_has_bytes_or_paths(tmp_path, folder, group):
    names, data = list(CONTENT), list(CONTENT.values())
    images = [{"bytes": value, "path": name} for name, value in CONTENT.items()]
    options = {"row_group_size": group}
    path = tmp_path / "a.parquet"
    assert read(write_parquet(path, {"id": [1, 2, 3], "key": names, "jpg": data}, **options)) == CONTENT
    assert read(write_parquet(path, {"image": images, "label": [0, 1, 2]}, **options)) == CONTENT
    numbered = dict(zip(["00000000", "00000001", "00000002"], data, strict=True))
    assert read(write_parquet(path, {"bytes": data}, **options)) == numbered
    assert read(write_parquet(path, {"bytes": data, "key": ["a", "a", "b"]}, **options)) == numbered
    assert read(write_parquet(folder / "a.parquet", {"path": names, "label": names}, **options)) == CONTENT


@pytest.mark.extras
def test_a_table_may_have_any_type_of_text_and_bytes(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    names, data = pyarrow.array(CONTENT), pyarrow.array(CONTENT.values())
    for kind in ("string", "large_string", "string_view"):
        columns = {"key": names.cast(kind), "jpg": data.cast(kind.replace("string", "binary"))}
        assert read(write_parquet(tmp_path / "a.parquet", columns)) == CONTENT
    columns = {"key": names.dictionary_encode(), "jpg": data.dictionary_encode()}
    assert read(write_parquet(tmp_path / "a.parquet", columns)) == CONTENT
    path = write_parquet(tmp_path / "a.parquet", {"id": [7, 8, 9], "jpg": data})
    assert list(read(path)) == ["7", "8", "9"]


@pytest.mark.extras
def test_rows_without_a_photo_are_empty(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"key": ["a", "b"], "bytes": [b"1", None]})
    assert read(path) == {"a": b"1", "b": b""}


@pytest.mark.extras
def test_some_rows_of_a_table_are_read(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"bytes": [b"%d" % row for row in range(9)]}, row_group_size=4)
    places = [find_photos(path).places[row] for row in (1, 3, 4, 8)]
    assert list(map(place_reader(places), places)) == [b"1", b"3", b"4", b"8"]


def test_object_storage_has_the_same_sources(folder, storage, tmp_path):  # noqa: F811
    cloud = tmp_path / "cloud" / "bucket"
    os.rename(folder, cloud / "photos")
    assert read("gs://bucket/photos") == CONTENT
    assert find_photos("gs://bucket/photos").root == ""
    write_tar(cloud / "shards-0.tar", {**CONTENT, "empty.jpg": b""})
    assert read("s3://bucket/shards-0.tar") == {**CONTENT, "empty.jpg": b""}
    assert len(storage.moved("get")) == len(CONTENT) * 2  # S3 would send the whole file for an empty range
    write_tar(cloud / "shards.tar" / "0.tar", CONTENT)
    assert read("gs://bucket/shards.tar/") == {f"0.tar/{name}": data for name, data in CONTENT.items()}
    with pytest.raises(InputError, match="has no photos"):
        find_photos("gs://bucket/photos/a.jpg")
    (cloud / "photos" / "list.txt").write_text("\ufeffa.jpg\ns3://bucket/photos/b/c.PNG\n")
    listed = {"a.jpg": b"first", "s3://bucket/photos/b/c.PNG": b"second"}
    assert read("gs://bucket/photos/list.txt") == listed


def test_a_photo_that_is_not_there_is_an_error_of_its_own(folder, storage):  # noqa: F811
    path = folder / "list.txt"
    path.write_text("gone.jpg\ngs://bucket/gone.jpg\n")
    for place in find_photos(path).places:
        with pytest.raises(FileNotFoundError):
            place_reader([place])(place)
    storage.refused = "gone"
    with pytest.raises(InputError, match=r"gs://bucket/gone\.jpg: no permission"):
        place_reader([place])(place)


def test_a_source_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no archive" * 100)
    (tmp_path / "a.txt").write_text("\n")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    write_tar(tmp_path / "twice.tar", {"a.jpg": b""})
    with tarfile.open(tmp_path / "twice.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    for name, message in {
        "none": "none does not exist; name a folder, a .txt list, a .parquet file or a .tar file",
        "a.tar": "a.tar is not an uncompressed .tar file, or is truncated",
        "a.txt": "a.txt has no photos",
        "a.tar.gz": "is compressed, so single photos in it cannot be read",
        "twice.tar": "several photos with one name; rename them:\n  a.jpg",
    }.items():
        with pytest.raises(InputError, match=message):
            find_photos(tmp_path / name)


@pytest.mark.extras
def test_a_table_that_cannot_be_used_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    path = write_parquet(tmp_path / "a.parquet", {"label": ["a"], "left": [b""], "right": [b""]})
    with pytest.raises(InputError, match=r"no column of photos; .*\(its columns: label, left, right\)"):
        find_photos(path)
    struct = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    images = pyarrow.array([{"bytes": None, "path": "a.jpg"}], struct)
    with pytest.raises(InputError, match="has paths and no bytes in 'image'"):
        find_photos(write_parquet(path, {"image": images}))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="is not a Parquet file, or is damaged"):
        find_photos(path)
    write_parquet(path, {"key": [f"{row:04}" * 9 for row in range(999)], "jpg": [b"1"] * 999}, compression="snappy")
    content = bytearray(path.read_bytes())
    content[50:500] = b"\xff" * 450
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a Parquet file, or is damaged"):
        find_photos(path)


@pytest.mark.extras
def test_large_row_groups_and_two_possible_columns_are_refused(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", {"bytes": [b"%d" % row for row in range(1000)]})
    monkeypatch.setattr("aia_jax.data.photo_tables._LARGEST_GROUP", 1000)
    with pytest.raises(InputError, match=r"has row groups of up to 0\.0 GB, .* such as row_group_size=1000"):
        find_photos(path)
    write_parquet(path, {"path": ["a.jpg"], "md5": [b"0"]})
    with pytest.raises(InputError, match=r"no column of photos; .*\(its columns: path, md5\)"):
        find_photos(path)


def test_symbolic_links_in_an_archive_are_photos_or_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", CONTENT)
    for name, target in {"d/link.jpg": "../b/c.PNG", "e.txt": "nowhere", "lost.jpg": "nowhere.jpg"}.items():
        with tarfile.open(path, "a") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
        if name != "lost.jpg":
            assert read(path) == {**CONTENT, "d/link.jpg": CONTENT["b/c.PNG"]}
    with pytest.raises(InputError, match=r"has a link, lost\.jpg; make it with --dereference"):
        find_photos(path)
