"""Writes keywords into photos in a process that is killed twice, and compares every photo. Not part of the tests.

    python tests/soak/embed_kills.py --images datasets/Corel-5k/images --number 5000

After each kill, each photo must be as before or have the complete XMP: the same pixels and scan, and all other bytes.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aia_jax.data.photo_files import PhotoFiles
from aia_jax.data.photo_metadata.embedded import read_embedded
from aia_jax.data.photo_metadata.keywords import SUBJECT
from aia_jax.data.photo_metadata.mapping import KeywordMapping
from aia_jax.data.photo_metadata.xmp_packet import XmpPacket
from aia_jax.inference.keyword_output import KeywordWriter, undo

LABELS = ("dog", "Größe")


def write(folder):
    writer = KeywordWriter(folder, KeywordMapping(), ("auto",), sidecar="", embed=True)
    for name in PhotoFiles().names(folder):
        for shown, _, problem in writer.write(name, LABELS):
            if problem:
                raise SystemExit(f"{shown}: {problem}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--number", type=int, default=5000)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        return write(arguments.write)
    with tempfile.TemporaryDirectory() as temporary:
        folder, originals = Path(temporary), arguments.images.resolve()
        names = PhotoFiles().names(originals)
        for number in range(arguments.number):
            shutil.copyfile(originals / names[number % len(names)], folder / f"{number:05d}.jpg")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        counts = []
        for kill_at in (0.25, 0.6, None):
            command = [sys.executable, __file__, "--images", str(originals), "--write", str(folder)]
            process = subprocess.Popen(command)
            while kill_at and count_changed(folder, before) < kill_at * len(before):
                time.sleep(0.05)
            if kill_at:
                os.kill(process.pid, signal.SIGKILL)
            code = process.wait()
            assert code == (-9 if kill_at else 0), code
            counts.append(compare(folder, before))
        assert counts[-1]["with keywords"] == len(before)
        assert counts[-1]["other files"] == 0
        for name, changed, problem in undo(folder):
            assert (changed, problem) == (True, ""), name
        assert {path.name: digest(path.read_bytes()) for path in folder.iterdir()} == {
            name: digest(content) for name, content in before.items()
        }
    print(
        json.dumps(
            {"photos": len(before), "after each step": counts, "equal in every byte after undo": len(before)}, indent=2
        )
    )


def count_changed(folder, before):
    return sum((folder / name).stat().st_size != len(content) for name, content in before.items())


def compare(folder, before):
    """Counts the photos with keywords. Each photo must have all bytes of before, outside the XMP."""
    counts = {"with keywords": 0, "as before": 0, "other files": 0}
    for path in folder.iterdir():
        if path.name not in before:
            counts["other files"] += 1
            continue
        content, original = path.read_bytes(), before[path.name]
        if content == original:
            counts["as before"] += 1
            continue
        xmp = read_embedded(path).xmp
        assert XmpPacket(xmp).values(SUBJECT) == LABELS, path
        segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
        start = content.index(segment) - 4
        assert content[:start] + content[start + 4 + len(segment) :] == original, path
        counts["with keywords"] += 1
    assert counts["with keywords"] + counts["as before"] == len(before)
    return counts


def digest(content):
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
