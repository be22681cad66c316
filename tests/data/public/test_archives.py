"""Valid, damaged and malicious zip files of photos."""

import random
import zipfile

import pytest

from aia_jax.data.public.acquisition import unpack_photos
from aia_jax.utils.errors import InputError
from tests.helpers.file_server import zip_file

RANDOM = random.Random(0)
PHOTOS = {f"{number}.jpg": RANDOM.randbytes(2000) for number in range(5)}
ARCHIVE = zip_file({"../../1.jpg": b"?"})
OUTSIDE = ["../1.jpg", "VG_100K/../../1.jpg", "/etc/1.jpg", "C:\\1.jpg", "..\\1.jpg"]


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "images.zip"
    members = {"VG_100K/": b"", **{f"VG_100K/{name}": content for name, content in PHOTOS.items()}}
    path.write_bytes(zip_file({**members, "VG_100K/Thumbs.db": b"?"}))
    return path


def unpack(archive, *names) -> set[str]:
    return unpack_photos(archive, {name: archive.parent / "images" / name for name in names or PHOTOS})


def written(archive) -> dict[str, bytes]:
    files = [path for path in archive.parent.rglob("*") if path.is_file() and path != archive]
    return {str(path.relative_to(archive.parent)): path.read_bytes() for path in files}


def error_of(archive) -> str:
    with pytest.raises(InputError) as caught:
        unpack(archive)
    return str(caught.value)


def test_only_requested_photos_are_written(archive):
    assert unpack(archive, "1.jpg", "3.jpg", "9.jpg") == {"1.jpg", "3.jpg"}
    assert written(archive) == {f"images/{name}": PHOTOS[name] for name in ("1.jpg", "3.jpg")}


@pytest.mark.parametrize(
    ("members", "content"),
    [
        ({"VG_100K/1.jpg": PHOTOS["1.jpg"], "VG_100K_2/1.jpg": PHOTOS["2.jpg"]}, PHOTOS["1.jpg"]),
        ({"1.jpg": ARCHIVE}, ARCHIVE),
        *(({name: PHOTOS["1.jpg"]}, PHOTOS["1.jpg"]) for name in OUTSIDE),
    ],
)
def test_the_first_member_of_a_name_is_written_to_the_folder_of_photos_only(archive, members, content):
    archive.write_bytes(zip_file(members, zipfile.ZIP_DEFLATED))
    assert unpack(archive) == {"1.jpg"}
    assert written(archive) == {"images/1.jpg": content}


def _patch_directory(path, name, offset, content):
    """Replaces bytes of the entry of `name` in the central directory."""
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
    data[entry + offset : entry + offset + len(content)] = content
    path.write_bytes(data)


def test_a_member_is_never_expanded_beyond_its_declared_size(archive, monkeypatch):
    archive.write_bytes(zip_file({"0.jpg": PHOTOS["0.jpg"], "1.jpg": bytes(50_000_000)}, zipfile.ZIP_DEFLATED))
    _patch_directory(archive, "1.jpg", 24, (1000).to_bytes(4, "little"))
    inflated = []
    inflate = zipfile.ZipExtFile._read1
    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", lambda self, n: inflated.append(n) or inflate(self, n))
    assert "'1.jpg' is damaged (Bad CRC-32" in error_of(archive)
    assert max(inflated) < 10_000
    assert written(archive).keys() == {"images/0.jpg"}  # The members before it are valid.


def test_damaged_and_encrypted_members_are_refused(archive):
    content = archive.read_bytes()
    place = content.index(PHOTOS["2.jpg"]) + 7
    archive.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    message = error_of(archive)
    assert "'VG_100K/2.jpg' is damaged (Bad CRC-32" in message
    assert "remove it, and the same command downloads it again" in message
    archive.write_bytes(content)
    _patch_directory(archive, "1.jpg", 8, b"\1")
    assert "is encrypted" in error_of(archive)
    for damaged in (content[:-30], b"", b"<html>"):
        archive.write_bytes(damaged)
        assert f"{archive} cannot be used: File is not a zip file" in error_of(archive)
