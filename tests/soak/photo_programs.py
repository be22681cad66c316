"""Writes keywords for real photos with odd names, and compares what exiftool and exiv2 read. Not part of the tests.

    python tests/soak/photo_programs.py --images datasets/Corel-5k/images --number 200

Some photos have keywords already: in IPTC and XMP of exiftool, in sidecars of exiftool and exiv2, and in sidecars in
the forms of Lightroom, digiKam and darktable. Keywords are written twice, with other labels the second time, and taken
back. After each step, all four fields must be as meant, and everything else as before, compared element by element.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image

from aia_jax.data.photo_files import PhotoFiles
from aia_jax.data.photo_metadata.keywords import FIELDS, RECORD, write_path
from aia_jax.data.photo_metadata.mapping import KeywordMapping
from aia_jax.data.photo_metadata.photo_xmp import FORMS, photo_keywords, sidecar_path
from aia_jax.data.photo_metadata.xmp_packet import XmpPacket
from aia_jax.inference.keyword_output import KeywordWriter, undo
from tests.data.photo_metadata.test_keywords import OWN, others
from tests.helpers.sidecars import SIDECARS

NAMES = (
    "a b.jpg",
    "ä|ö.jpg",
    "comma, semi;colon.jpg",
    "<b>&amp;.jpg",
    "'quote\".jpg",
    "日本.JPG",
    "no.dots.in.jpg",
    "-dash.jpg",
)
EXIFTOOL = ("XMP-lr:HierarchicalSubject", "XMP-digiKam:TagsList", "XMP-microsoft:LastKeywordXMP", "XMP-dc:Subject")
EXIV2 = ("Xmp.lr.hierarchicalSubject", "Xmp.digiKam.TagsList", "Xmp.MicrosoftPhoto.LastKeywordXMP", "Xmp.dc.subject")
LABELS = ("dog", "Black/White", "sky | sea", "a, b; c", "<tag> & co", "Größe", "虎", "two words")


def run(*command):
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
    ).stdout


def exiftool_reads(paths):
    """The values of the four fields in each file, as exiftool reads them."""
    tags = [f"-{tag}" for tag in EXIFTOOL]
    text = run("exiftool", "-j", "-G1", "-struct", "-charset", "filename=utf8", *tags, *(f"./{path}" for path in paths))
    found = {os.path.normpath(entry["SourceFile"]): entry for entry in json.loads(text)}

    def values(entry, tag):
        value = entry.get(tag, [])
        return [str(item) for item in (value if isinstance(value, list) else [value])]

    return {path: [values(found[str(path)], tag) for tag in EXIFTOOL] for path in paths}


def exiv2_reads(path):
    """The values of the four fields in a file, as exiv2 reads them: joined by ", "."""
    lines = run("exiv2", "-PXkt", f"./{path}").splitlines()
    pairs = [line.split(None, 1) for line in lines]
    return [", ".join(pair[1].rstrip() for pair in pairs if pair[0] == key) for key in EXIV2]


def prepare(source, names):
    """Copies photos to odd names, and gives some of them keywords. Returns the keywords of each photo."""
    own = {}
    for number, photo in enumerate(names):
        kind = number % 9
        path = Path(f"{number // len(NAMES)}", NAMES[number % len(NAMES)])
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(source / photo, path)
        sidecar = path.with_name(path.name + ".xmp")
        own[path] = []
        if kind == 1:
            iptc = ("-IPTC:Keywords=beach", "-IPTC:Keywords=Zürich", "-CodedCharacterSet=UTF8", "-charset", "iptc=UTF8")
            run("exiftool", "-q", "-overwrite_original", *iptc, f"./{path}")
            own[path] = [("beach",), ("Zürich",)]
        elif kind in (2, 3):
            target = ("-o", f"./{sidecar}") if kind == 3 else ("-overwrite_original",)
            xmp = (
                "-XMP-dc:Subject=Rome",
                "-XMP-dc:Subject=x,y",
                "-XMP-lr:HierarchicalSubject=Places|Rome",
                "-XMP:Rating=4",
            )
            run("exiftool", "-q", *target, *xmp, f"./{path}")
            own[path] = [("Places", "Rome"), ("x,y",)]
        elif kind == 4:
            sidecar.write_text(SIDECARS["darktable"])
            run("exiv2", "-M", "add Xmp.dc.subject XmpBag mine", "-M", "add Xmp.xmp.Label XmpText red", f"./{sidecar}")
            own[path] = [("mine",)]
        elif kind > 4:
            program = list(SIDECARS)[kind - 5]
            sidecar.write_text(SIDECARS[program])
            own[path] = OWN[program]
    return own


def expected(before, own, automatic, has):
    values = []
    for field, there, exists in zip(FIELDS, before, has, strict=True):
        first = there if exists else [write_path(field, path) for path in own]
        values.append([*dict.fromkeys([*first, *(write_path(field, path) for path in automatic)])])
    return values


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--number", type=int, default=200)
    arguments = parser.parse_args()
    source = arguments.images.resolve()
    names = PhotoFiles().names(source)[: arguments.number]
    counts = Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        own = prepare(source, names)
        photos = list(own)
        photo_bytes = {path: path.read_bytes() for path in photos}
        sidecars = {path: sidecar_path(path, FORMS[0]) for path in photos}
        first = {path: sidecar.read_bytes() for path, sidecar in sidecars.items() if sidecar.exists()}
        there = [sidecars[path] for path in first]
        read_before = exiftool_reads(there)
        for path in photos:
            assert photo_keywords(path)[0] == own[path], (path, photo_keywords(path), own[path])
            counts["photos whose keywords are read back"] += bool(own[path])
        for step in (0, 3):
            writer = KeywordWriter(Path("."), KeywordMapping(), ("auto",))
            chosen = {
                path: [LABELS[(number + step + shift) % len(LABELS)] for shift in range(3)]
                for number, path in enumerate(photos)
            }
            for path, labels in chosen.items():
                for name, changed, problem in writer.write(str(path), labels):
                    assert (changed, problem) == (True, ""), name
            reads = exiftool_reads(sidecars.values())
            for path, sidecar in sidecars.items():
                has = [field.name.encode() in first.get(path, b"") for field in FIELDS]
                automatic = [("auto", label) for label in chosen[path]]
                meant = expected(read_before.get(sidecar, [[]] * 4), own[path], automatic, has)
                assert [sorted(values) for values in reads[sidecar]] == [sorted(values) for values in meant], (
                    reads[sidecar],
                    meant,
                )
                counts["sidecars as meant in exiftool"] += 1
                packet = XmpPacket(sidecar.read_bytes())
                joined = [", ".join(packet.values(field)) for field in FIELDS]
                assert exiv2_reads(sidecar) == joined, (exiv2_reads(sidecar), joined)
                assert [sorted(packet.values(field)) for field in FIELDS] == [sorted(values) for values in meant]
                counts["sidecars as meant in exiv2"] += 1
                if path in first:
                    assert others(packet) == others(XmpPacket(first[path]))
                    counts["sidecars with everything of others"] += 1
                assert photo_keywords(path)[0] == own[path]
        for name, changed, problem in undo(Path(".")):
            assert (changed, problem) == (True, ""), name
        for path, sidecar in sidecars.items():
            assert sidecar.exists() == (path in first)
            if path in first:
                packet, before = XmpPacket(sidecar.read_bytes()), XmpPacket(first[path])
                assert others(packet) == others(before)
                assert not packet.has(RECORD)
                assert [packet.values(field) for field in FIELDS] == [before.values(field) for field in FIELDS]
                counts["sidecars as before after undo"] += 1
                counts["of them equal in every byte"] += packet.content == first[path]
        assert {path: path.read_bytes() for path in photos} == photo_bytes
        counts["photos untouched"] = len(photos)
        counts |= embedded(photos, own, photo_bytes)
    print(json.dumps(counts, indent=2))


def embedded(photos, own, photo_bytes):
    """The same inside the photos. All other tags, and the pixels, must stay."""
    counts = Counter()

    def tags(path):
        found = json.loads(
            run("exiftool", "-j", "-a", "-G1", "-u", "-struct", "--System:all", "--ExifTool:all", f"./{path}")
        )[0]
        fields = (*EXIFTOOL, "XMP-x:XMPToolkit", "XMP-aia:Written", "File:CurrentIPTCDigest")
        return {key: value for key, value in found.items() if key not in fields}

    before = {path: tags(path) for path in photos}
    pixels = {path: Image.open(path).tobytes() for path in photos}
    writer = KeywordWriter(Path("."), KeywordMapping(), ("auto",), sidecar="", embed=True)
    for path in photos:
        [(_, changed, problem)] = writer.write(str(path), LABELS[:2])
        assert (changed, problem) == (True, ""), (path, problem)
    reads = exiftool_reads(photos)
    for path in photos:
        assert {"auto|dog", "auto|Black/White"} <= set(reads[path][0])
        assert tags(path) == before[path]
        assert Image.open(path).tobytes() == pixels[path]
        scan = photo_bytes[path].index(b"\xff\xda")
        assert path.read_bytes().endswith(photo_bytes[path][scan:])
        counts["photos as meant in exiftool, other tags, scan and pixels as before"] += 1
    for _, changed, problem in undo(Path(".")):
        assert (changed, problem) == (True, ""), (path, problem)
    for path in photos:
        assert tags(path) == before[path]
        counts["photos equal in every byte after undo"] += path.read_bytes() == photo_bytes[path]
    return counts


if __name__ == "__main__":
    main()
