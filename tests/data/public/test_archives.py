"""Zip files of photos, and such as only look so."""

import io
import random
import stat
import zipfile

import pytest

from aia_jax.data.public.archives import unpack_photos
from aia_jax.utils.errors import InputError
from tests.helpers.file_server import write_zip

RANDOM = random.Random(0)
PHOTOS = {f"{number}.jpg": RANDOM.randbytes(2000) for number in range(5)}


@pytest.fixture
def archive(tmp_path):
    members = {"VG_100K/": b"", **{f"VG_100K/{name}": content for name, content in PHOTOS.items()}}
    return write_zip(tmp_path / "images.zip", {**members, "VG_100K/Thumbs.db": b"?"})


def targets(tmp_path, *names):
    return {name: tmp_path / "images" / name for name in names or PHOTOS}


def written(tmp_path):
    return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} - {"images.zip"}


def refused(path, tmp_path, *names) -> str:
    with pytest.raises(InputError) as caught:
        unpack_photos(path, targets(tmp_path, *names))
    return str(caught.value)


def test_only_what_is_wanted_is_written(archive, tmp_path):
    assert unpack_photos(archive, targets(tmp_path, "1.jpg", "3.jpg", "9.jpg")) == {"1.jpg", "3.jpg"}
    assert written(tmp_path) == {"images/1.jpg", "images/3.jpg"}
    assert (tmp_path / "images" / "3.jpg").read_bytes() == PHOTOS["3.jpg"]


def test_compressed_members(tmp_path):
    path = write_zip(tmp_path / "images.zip", {"a/1.jpg": PHOTOS["1.jpg"]}, compression=zipfile.ZIP_DEFLATED)
    assert unpack_photos(path, targets(tmp_path)) == {"1.jpg"}
    assert (tmp_path / "images" / "1.jpg").read_bytes() == PHOTOS["1.jpg"]


@pytest.mark.parametrize("name", ["../1.jpg", "VG_100K/../../1.jpg", "/etc/1.jpg", "C:\\1.jpg", "..\\1.jpg"])
def test_paths_that_lead_out(tmp_path, name):
    path = write_zip(tmp_path / "images.zip", {"VG_100K/0.jpg": b"?", name: b"?"})
    assert "leads out of it" in refused(path, tmp_path)
    assert not written(tmp_path)


def test_links(tmp_path):
    link = zipfile.ZipInfo("VG_100K/1.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(tmp_path / "images.zip", {link: "/etc/passwd"})
    assert "'VG_100K/1.jpg' is no file but a link" in refused(path, tmp_path)
    assert unpack_photos(path, targets(tmp_path, "2.jpg")) == set()  # not wanted, not touched
    assert not written(tmp_path)


def test_a_member_of_the_size_that_no_photo_has(tmp_path):
    path = tmp_path / "images.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("1.jpg", "w", force_zip64=True) as member,
    ):
        for _ in range(65):
            member.write(bytes(1 << 20))
    assert "has 68,157,440 bytes, a photo 67,108,864 at most" in refused(path, tmp_path)


def test_members_that_are_many_times_the_archive_together(tmp_path):
    zeros = {name: bytes(100_000) for name in PHOTOS}
    path = write_zip(tmp_path / "images.zip", zeros, compression=zipfile.ZIP_DEFLATED)
    assert "bytes hold 500,000 bytes of photos" in refused(path, tmp_path)
    assert not written(tmp_path)


def _patched(path, name, offset, number):
    """`path` with a four-byte field of the central directory's entry of `name` replaced."""
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    content[entry + offset : entry + offset + 4] = number.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def test_a_member_that_is_larger_than_it_says(tmp_path, monkeypatch):
    """However much would come out of it, no more is made than it says."""
    zeros = {"0.jpg": PHOTOS["0.jpg"], "1.jpg": bytes(50_000_000)}
    path = write_zip(tmp_path / "images.zip", zeros, compression=zipfile.ZIP_DEFLATED)
    path = _patched(path, "1.jpg", 24, 1000)
    inflated = []
    inflate = zipfile.ZipExtFile._read1
    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", lambda self, n: inflated.append(n) or inflate(self, n))
    assert "'1.jpg' is damaged (Bad CRC-32" in refused(path, tmp_path)
    assert max(inflated) < 10_000
    assert written(tmp_path) == {"images/0.jpg"}  # what came before it is sound


def test_a_damaged_member(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    content[content.index(PHOTOS["2.jpg"]) + 7] ^= 1
    archive.write_bytes(content)
    message = refused(archive, tmp_path)
    assert "'VG_100K/2.jpg' is damaged (Bad CRC-32" in message
    assert "remove images.zip and images.zip.json, and the same command downloads it again" in message


def test_an_encrypted_member(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02", 0, content.rindex(b"1.jpg")) + 8] |= 1
    archive.write_bytes(content)
    assert "is encrypted" in refused(archive, tmp_path)


@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda content: b"", lambda content: b"<html>"])
def test_no_zip_file(archive, tmp_path, damage):
    archive.write_bytes(damage(archive.read_bytes()))
    assert f"{archive} cannot be used: File is not a zip file" in refused(archive, tmp_path)


def test_of_two_members_with_the_same_name_the_first_counts(tmp_path):
    path = write_zip(tmp_path / "images.zip", {"VG_100K/1.jpg": PHOTOS["1.jpg"], "VG_100K_2/1.jpg": PHOTOS["2.jpg"]})
    unpack_photos(path, targets(tmp_path))
    assert (tmp_path / "images" / "1.jpg").read_bytes() == PHOTOS["1.jpg"]


def test_an_archive_in_an_archive_is_a_file_like_others(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("../../1.jpg", b"?")
    path = write_zip(tmp_path / "images.zip", {"1.jpg": inner.getvalue()})
    assert unpack_photos(path, targets(tmp_path)) == {"1.jpg"}
    assert written(tmp_path) == {"images/1.jpg"}
