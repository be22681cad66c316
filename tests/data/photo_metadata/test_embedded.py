"""XMP packets and IPTC keywords inside photos: what is written is read, and nothing else changes."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from aia_jax.data.photo_metadata import jpeg_segments, tiff_entries
from aia_jax.data.photo_metadata.container import Piece, Source
from aia_jax.data.photo_metadata.embedded import EmbeddedMetadata, read_embedded, write_embedded_xmp
from aia_jax.utils.errors import InputError
from tests.helpers.embedded_photos import FILES, KEYWORDS, image, refused, saved, write, xmp_packet

_WITH_IPTC = ("baseline.jpg", "texts.png", "little.tif", "pages.tif", "big.tif")
_NOT_RESTORED = ("lossy.webp", "lossless.webp", *(name for name in FILES if name.endswith(".tif")))


def _pixels(path: Path) -> list[np.ndarray]:
    frames = []
    if path.name == "motorola-big.tif":
        return frames
    with Image.open(path) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image))
    return frames


def _exiftool(folder: Path) -> dict[str, dict[str, object]]:
    """Returns all tags of all photos but those of their XMP and of the file system."""
    command = ["exiftool", "-a", "-G1", "-j", "-u", "-U", folder]
    photos = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    ours = ("File:FileSize", "File:FileType", "RIFF:WebP_Flags", "System:", "XMP", "SourceFile", "ExifTool:", "Comp")
    return {
        photo["SourceFile"]: {tag: value for tag, value in photo.items() if not tag.startswith(ours)}
        for photo in photos
    }


@pytest.mark.parametrize("name", FILES)
def test_a_packet_is_written_replaced_and_removed_and_all_else_stays(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name)
    path.chmod(0o640)
    os.utime(path, ns=(10**18, 10**18 + 7))
    iptc = KEYWORDS if name in _WITH_IPTC else ()
    pixels = _pixels(path)
    assert read_embedded(path) == EmbeddedMetadata(b"", iptc)
    packets = xmp_packet("dog"), xmp_packet("dog", "Ärger", padding=2001), xmp_packet("a", padding=0), b"odd", b""
    for packet in packets:
        write_embedded_xmp(path, packet)
        assert read_embedded(path) == EmbeddedMetadata(packet, iptc)
        assert np.array_equal(_pixels(path), pixels)
        assert (path.stat().st_mode & 0o777, path.stat().st_mtime_ns) == (0o640, 10**18 + 7)
        if name.endswith(".tif"):
            content = path.read_bytes()
            assert (content[:4], content[16 : len(FILES[name])]) == (FILES[name][:4], FILES[name][16:])
    assert path.read_bytes() == FILES[name] or name in _NOT_RESTORED
    assert os.listdir(tmp_path) == [name]
    write_embedded_xmp(path, b"odd", keep_time=False)
    assert path.stat().st_mtime_ns > 10**18 + 7


@pytest.mark.skipif(not shutil.which("exiftool") or not shutil.which("exiv2"), reason="needs exiftool and exiv2")
def test_exiftool_and_exiv2_read_the_packet_and_find_all_other_tags_unchanged(tmp_path: Path) -> None:
    paths = [write(tmp_path, name) for name in FILES]
    before = _exiftool(tmp_path)
    for path in paths:
        write_embedded_xmp(path, xmp_packet("dog"))
        write_embedded_xmp(path, xmp_packet("dog", "Ärger"))
    after = _exiftool(tmp_path)
    for path in map(str, paths):
        new = after[path].keys() - before[path].keys()
        assert not {tag for tag in new if not tag.startswith(("RIFF:", "IFD0:ApplicationNotes"))}
        # exiftool shows the positions of further pictures in the file, and Pillow finds them at these.
        kept = [tag for tag in before[path] if not tag.endswith(":MPImageStart")]
        assert {tag: after[path][tag] for tag in kept} == {tag: before[path][tag] for tag in kept}
    subjects = json.loads(subprocess.run(["exiftool", "-j", "-XMP-dc:Subject", *paths], capture_output=True).stdout)
    assert [photo["Subject"] for photo in subjects] == [["dog", "Ärger"]] * len(paths)
    known = [path for path in paths if "big" not in path.name]  # exiv2 does not read BigTIFF
    output = subprocess.run(["exiv2", "-K", "Xmp.dc.subject", "-Pv", *known], capture_output=True).stdout
    assert output.decode().count("dog, Ärger") == len(known)


def test_every_cut_is_an_error_that_says_so_and_changes_nothing(tmp_path: Path) -> None:
    for name in ("baseline.jpg", "texts.png", "exif.webp", "little.tif", "motorola-big.tif"):
        path = write(tmp_path, name)
        write_embedded_xmp(path, xmp_packet("dog"))
        whole = path.read_bytes()
        end = whole.index(b"\xff\xda") if name.endswith("jpg") else whole.index(b"IEND") if "png" in name else 0
        for size in range(16, end or len(whole), 37):
            path.write_bytes(whole[:size])
            if name == "exif.webp" and size >= len(whole) - 4:
                continue  # in the bytes after the image
            refused(path, "cut off|the file ends")


def test_mutated_files_raise_only_input_errors_and_stay_unchanged(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "photo"
    for content in list(FILES.values()) * 12:
        mutated = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(0, min(len(mutated), 700), rng.integers(1, 5))
        mutated[places] = rng.choice([0, 1, 127, 128, 255, 28], len(places))
        path.write_bytes(mutated)
        for packet in (None, b"a packet"):
            try:
                if packet is None:
                    read_embedded(path)
                else:
                    write_embedded_xmp(path, packet)
                    assert b"a packet" in path.read_bytes()
            except InputError:
                assert path.read_bytes() == mutated.tobytes()


def test_other_formats_and_what_is_no_photo(tmp_path: Path) -> None:
    gif = tmp_path / "a.jpg"  # the content decides
    gif.write_bytes(saved(image("L"), "GIF"))
    assert read_embedded(gif) == EmbeddedMetadata(b"", ())
    refused(gif, "JPEG, PNG, WebP and TIFF files only", also_read=False)
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert read_embedded(empty) == EmbeddedMetadata(b"", ())
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    for path, match in ((tmp_path, "not a file"), (pipe, "not a file"), (tmp_path / "none.jpg", "No such file")):
        with pytest.raises(InputError, match=match):
            read_embedded(path)
        with pytest.raises(InputError, match=match):
            write_embedded_xmp(path, b"packet")


def test_a_link_stays_and_read_only_photos_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo = write(tmp_path / "photos", "baseline.jpg")
    link = tmp_path / "link.jpg"
    link.symlink_to("photos/baseline.jpg")
    write_embedded_xmp(link, b"packet")
    assert (link.is_symlink(), read_embedded(photo).xmp) == (True, b"packet")
    before = photo.stat()
    write_embedded_xmp(photo, b"packet")  # nothing to do
    assert photo.stat().st_ino == before.st_ino
    for place, mode in ((photo, 0o444), (photo.parent, 0o555)):
        old = place.stat().st_mode
        place.chmod(mode)
        refused(link, f"{place} is read-only", also_read=False)
        refused(link, f"{place} is read-only", b"", also_read=False)
        place.chmod(old)


@pytest.mark.parametrize("name", ["baseline.jpg", "little.tif"])
def test_a_photo_that_changes_and_a_wrong_copy_are_not_renamed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, name)
    module = jpeg_segments if name.endswith("jpg") else tiff_entries
    rewrite = module.rewrite

    def wrong(source: Source, packet: bytes) -> list[Piece]:
        pieces = rewrite(source, packet)
        last = pieces.index(next(piece for piece in reversed(pieces) if isinstance(piece, range)))
        span = pieces[last]
        return [*pieces[:last], range(span.start, span.stop - 9), b"different", *pieces[last + 1 :]]

    with monkeypatch.context() as patch:
        patch.setattr(module, "rewrite", wrong)
        refused(path, "differ from the photo", also_read=False)
        patch.setattr(module, "rewrite", lambda source, packet: rewrite(source, b"another"))
        refused(path, "differ from the photo", also_read=False)
        patch.setattr(module, "rewrite", lambda source, packet: [b"nothing"])
        refused(path, "differ from the photo", also_read=False)
    for error in (OSError(28, "No space left on device"), OSError(5, "Input/output error")):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", Mock(side_effect=error))
            refused(path, "the photo is unchanged", also_read=False)
    other = write(tmp_path, "plain.png")
    monkeypatch.setattr(os, "fsync", lambda file: other.replace(path))
    with pytest.raises(InputError, match="another program changed the photo"):
        write_embedded_xmp(path, b"packet")
    assert path.read_bytes() == FILES["plain.png"]
