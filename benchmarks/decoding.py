"""Compares decoding large JPEG photos at a fraction of their size with exact decoding: time, pixels and labels.

    python -m benchmarks.decoding --images photos --output FILE.json
    python -m benchmarks.decoding --images photos --megapixels 12

Every photo is decoded both ways, for the input of each model. A *flip* is a label whose score is above its threshold
in only one of the two. Not all photos are used without --full. Run it from the repository.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import aia_jax
from aia_jax.cli.flags import Parser, positive
from aia_jax.data.image_decoding import decode_image
from aia_jax.utils.files import write_json
from benchmarks.annotate_folder import choose_photos
from benchmarks.comparison import add_full_argument, run_command
from benchmarks.timing import machine, progress, versions

_FEW, _BATCH = 128, 32


def decode_both(path: Path, size: int) -> tuple[list[np.ndarray], list[float]]:
    """Returns the photo decoded exactly and at a fraction, uint8 `[S, S, 3]`, and the CPU seconds of both."""
    data, images, seconds = path.read_bytes(), [], []
    for draft in (False, True):
        start = time.thread_time()
        images.append(decode_image(data, size, upright=True, draft=draft))
        seconds.append(time.thread_time() - start)
    return images, seconds


def compare(model: str, paths: list[Path]) -> dict[str, Any]:
    """Compares both ways for a shipped model.

    Returns:
        `ms_exact` and `ms_fraction`, means per photo; `labels` with exact decoding; `flips`, and `photos_with_flips`;
        the `largest_score_difference`; `largest_difference` and `mean_difference` of pixels, of 255 levels.
    """
    annotator = aia_jax.load(model)
    size, thresholds = annotator._annotator.image_size, np.asarray(annotator.settings["thresholds"], np.float32)
    seconds, scores, pixels = [], [], []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(paths), _BATCH):
            decoded = list(pool.map(lambda path: decode_both(path, size), paths[start : start + _BATCH]))
            exact, fraction = (np.stack(images) for images in zip(*(images for images, _ in decoded), strict=True))
            seconds += [both for _, both in decoded]
            scores.append([annotator(list(images)).scores for images in (exact, fraction)])
            difference = np.abs(exact.astype(int) - fraction)
            pixels += zip(difference.max((1, 2, 3)), difference.mean((1, 2, 3)), strict=True)
    exact, fraction = (np.concatenate(part) for part in zip(*scores, strict=True))
    flips = (exact > thresholds) != (fraction > thresholds)
    ms_exact, ms_fraction = np.mean(seconds, axis=0) * 1e3
    largest, means = zip(*pixels, strict=True)
    return {
        "model": model,
        "photos": len(paths),
        "ms_exact": ms_exact,
        "ms_fraction": ms_fraction,
        "labels": int((exact > thresholds).sum()),
        "flips": int(flips.sum()),
        "photos_with_flips": int(flips.any(axis=1).sum()),
        "largest_score_difference": float(np.abs(exact - fraction).max()),
        "largest_difference": int(max(largest)),
        "mean_difference": float(np.mean(means)),
    }


def _run(arguments: argparse.Namespace) -> None:
    before, rows = machine(), []
    with tempfile.TemporaryDirectory(prefix="decoding-") as folder:
        progress("chooses the photos")
        photos = Path(folder) / "photos"
        choose_photos(arguments.images, photos, None if arguments.full else _FEW, arguments.megapixels)
        for model in arguments.models:
            progress(model)
            rows.append(compare(model, sorted(photos.iterdir())))
            print(
                "  ".join(
                    f"{name} {f'{value:.3g}' if isinstance(value, float) else value}"
                    for name, value in rows[-1].items()
                )
            )
    if arguments.output:
        facts = {"machine": before, "packages": versions(), "enlarged_to_megapixels": arguments.megapixels}
        write_json(arguments.output, {**facts, "results": rows})


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="large JPEG photos")
    parser.add_argument("--models", nargs="+", default=["open", "corel5k"], metavar="NAME", help="shipped models")
    parser.add_argument("--megapixels", type=positive, metavar="M", help="enlarge the photos to M megapixels before")
    add_full_argument(parser, f"all photos, not {_FEW}")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    run_command(parser, _run)
