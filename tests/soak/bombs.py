"""Small files that need much time or memory: measures both.

    python tests/soak/bombs.py --output bombs.json

Each file is read in its own process. Linux only.
"""

import io
import json
import multiprocessing
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from aia_jax.data.annotation.annotations import read_annotations  # noqa: E402
from aia_jax.data.image_decoding import decode_image  # noqa: E402
from aia_jax.metrics.thresholds import load_thresholds  # noqa: E402
from aia_jax.utils.errors import InputError  # noqa: E402
from aia_jax.weights.torch_files import read_torch_file  # noqa: E402
from tests.helpers.torch_save import old_bytes, torch_bytes, zip_bytes  # noqa: E402
from tests.soak.mutation import in_memory, write_files  # noqa: E402
from tests.soak.process import forget_peak, make_parser, memory, write_report  # noqa: E402

MOST_MB, MOST_SECONDS = 2_500, 60


def png(width: int, height: int, *, depth: int = 8, colours: int = 2, extra: bytes = b"", rows: int = 0) -> bytes:
    """A PNG of zeros. Its data has `rows` rows, or `height` rows if that is 0."""
    channels = {0: 1, 2: 3, 6: 4}[colours]
    lines = _compressed(bytes(1 + width * channels * depth // 8), rows or height)
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", lines) + _chunk(b"IEND", b"")


def text_chunk(num_bytes: int) -> bytes:
    """A zTXt chunk that expands to `num_bytes`, a multiple of 1,000,000."""
    return _chunk(b"zTXt", b"comment\0\0" + _compressed(b"a" * 1_000_000, num_bytes // 1_000_000))


def jpeg(width: int, height: int, *, scans: int = 0, **options: Any) -> bytes:
    """A gray JPEG, with its last scan repeated `scans` times."""
    data = in_memory(Image.new(options.pop("mode", "RGB"), (width, height)).save, "JPEG", **options)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def claiming(data: bytes, width: int, height: int) -> bytes:
    """A JPEG with a wrong size in its header."""
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def gif(num_frames: int) -> bytes:
    """A GIF of 1 pixel with `num_frames` frames."""
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * num_frames + b";"


def zipped_weights(num_bytes: int) -> bytes:
    """A file of `torch.save` with a compressed array of zeros."""
    plain = torch_bytes({"a": np.zeros(num_bytes // 4, np.float32)})
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    return packed.getvalue()


def _many_storages(number: int) -> bytes:
    """A pickle that refers to empty storages."""
    keys = (f"X\x08\0\0\0{key:08}".encode() for key in range(number))
    start = b"\x80\2](X\7\0\0\0storageq\0ctorch\nFloatStorage\nq\1X\3\0\0\0cpuq\2"
    return start + b"".join(b"(h\0h\1%bh\2K\0NtQ" % key for key in keys) + b"e."


def _compressed(block: bytes, times: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(block) for _ in range(times)) + packer.flush()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _samples(number: int, labels: list[str], of_each: list[str]) -> bytes:
    samples = [{"image_name": f"{image}.jpg", "image_labels": of_each} for image in range(number)]
    return json.dumps({"labels": labels, "samples": samples}).encode()


def _label_names(number: int) -> list[str]:
    return [f"label {index}" for index in range(number)]


_VG500 = {"VG-500/vg500_vocabulary.txt": b"sky\n", "VG-500/train_list_500.txt": b"a\n" * 100_000}
# By the path of the file, from which `_read` knows the reader: the content of each file.
BOMBS: dict[str, dict[str, Callable[[], bytes]]] = {
    "photo": {
        "PNG of 199 megapixels": lambda: png(14_100, 14_100),
        "PNG of 199 megapixels, with alpha": lambda: png(14_100, 14_100, colours=6),
        "PNG of 199 megapixels, 16-bit grey": lambda: png(14_100, 14_100, colours=0, depth=16),
        "PNG that claims 60,000 x 60,000": lambda: png(60_000, 60_000, rows=1),
        "PNG that claims 14,000 x 14,000": lambda: png(14_000, 14_000, rows=1),
        "PNG of 1 pixel with 1 GB of text": lambda: png(1, 1, extra=text_chunk(10**9)),
        "JPEG of 199 megapixels": lambda: jpeg(14_100, 14_100),
        "JPEG of 199 megapixels, CMYK": lambda: jpeg(14_100, 14_100, mode="CMYK"),
        "JPEG of 199 megapixels, progressive": lambda: jpeg(14_100, 14_100, progressive=True),
        "JPEG of 199 megapixels, 100 scans": lambda: jpeg(14_100, 14_100, progressive=True, scans=90),
        "JPEG of 199 megapixels, 10**5 scans": lambda: jpeg(14_100, 14_100, progressive=True, scans=10**5),
        "JPEG that claims 65,500 x 65,500": lambda: claiming(jpeg(8, 8), 65_500, 65_500),
        "GIF of 1,000,000 frames": lambda: gif(1_000_000),
    },
    "weights.pth": {
        "weights of 400 MB in a zip of 0.4 MB": lambda: zipped_weights(400_000_000),
        "weights with a key of 2**1000 tuples": lambda: zip_bytes(b"\x80\2})" + b"q\0h\0\x86" * 1000 + b"Ns."),
        "weights that claim a name of 4 GB": lambda: old_bytes(b"\x80\2X\xff\xff\xff\xff"),
        "weights of 1,000,000 storages": lambda: old_bytes(_many_storages(1_000_000)),
    },
    "Corel-5k/train.json": {
        "JSON nested 10,000,000 deep": lambda: b"[" * 10_000_000,
        "JSON with a number of 10,000,000 digits": lambda: b"9" * 10_000_000,
        "1,000,000 labels": lambda: _samples(100, _label_names(1_000_000), ["label 5"]),
        "1,000,000 unknown labels": lambda: _samples(1, _label_names(500), _label_names(10**6)),
        "100,000 images by 100,000 labels": lambda: _samples(100_000, _label_names(100_000), []),
    },
    "thresholds.json": {
        "1,000,000 unknown thresholds": lambda: json.dumps(dict.fromkeys(_label_names(10**6), 2)).encode(),
    },
    "VG-500/vg_category_500_labels_index.json": {
        "100,000 times a name with 100,000 labels": lambda: json.dumps({"a": [0] * 100_000}).encode(),
    },
}


def measure(name: str, content: bytes, folder: Path) -> dict[str, Any]:
    """Reads one file, and returns its size, the outcome, seconds, and the additional memory in MB."""
    write_files({**_VG500, name: content}, folder)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_measured, (folder / name,))
    return {"bytes": len(content), **found, "outcome": found["outcome"].replace(f"{folder}/", "")[:200]}


def _measured(path: Path) -> dict[str, Any]:
    before, start = forget_peak(), time.perf_counter()
    try:
        _read(path)
        outcome = "read"
    except InputError as error:
        outcome = f"refused: {error}"
    seconds = time.perf_counter() - start
    return {"outcome": outcome, "seconds": round(seconds, 2), "mb": round((memory() - before) / 1e6)}


def _read(path: Path) -> None:
    if path.name == "photo":
        decode_image(path.read_bytes(), 448, upright=True)
    elif path.suffix == ".pth":
        read_torch_file(path)
    elif path.name == "thresholds.json":
        load_thresholds(path, _label_names(500))
    else:
        read_annotations(path.parents[1], path.parent.name.replace("-", "").lower(), "train")


def main() -> int:
    """The command."""
    given = make_parser(__doc__).parse_args()
    report = {}
    for place, files in BOMBS.items():
        for name, make in files.items():
            with tempfile.TemporaryDirectory(prefix="bombs-") as folder:
                report[name] = measure(place, make(), Path(folder))
    write_report(report, given.output)
    return 1 if any(one["mb"] > MOST_MB or one["seconds"] > MOST_SECONDS for one in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
