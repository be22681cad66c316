"""Measures how fast images reach a step: from device memory, from a memory-mapped copy, from records, from new JPEGs.

    python -m benchmarks.input --config configs/corel5k.py --config.batch_size=128 --step_rate 1800

The photos are generated in a temporary folder, by default with 500 x 375 pixels. Device memory needs only jax; the
other sources also need Grain, and "streamed" needs the extra `tfds`. "Streamed" decodes the photos of records in each
step, as --config.data.placement=stream does; "JPEGs" is the preparation of the memory-mapped copy.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aia_jax.cli.flags import at_least, positive
from aia_jax.data import scenes
from aia_jax.data.annotation.annotations import FOLDERS
from aia_jax.data.mapped_rows import MappedRows, RowWriter
from aia_jax.training import sharding
from aia_jax.training.step import gather_rows
from aia_jax.utils.errors import InputError
from aia_jax.utils.memory import keep_freed_memory
from benchmarks.comparison import SMALL, finish, make_parser, run_command, shrunk, timing_options, usable_device
from benchmarks.step import check_task
from benchmarks.timing import isolated, machine, per_second, progress, time_windows, versions

PHOTO_WIDTH = 500  # pixels; the height is three quarters of it
_DATASET = "corel5k"
_DISTINCT_PHOTOS = 16
_IN_FLIGHT = 2  # batches in transfer to the device
_READ_AHEAD = 8  # more batches than Grain reads ahead
_THREADS = (1, 2, 4)


def compare(
    config: ConfigDict,
    *,
    num_images: int = 1024,
    photo_width: int = PHOTO_WIDTH,
    step_rate: float = 1800.0,
    windows: int = 5,
    seconds: float = 1.0,
    full: bool = False,
) -> dict[str, Any]:
    """Times each source in a new process.

    Args:
        config: gives `data.image_size` and `batch_size`; on a CPU at most 160 px and 4 unless `full`.
        num_images: images in the split.
        photo_width: width of the photos in pixels; the height is three quarters of it.
        step_rate: images per second that a training step consumes.
        windows, seconds: see `timing.time_windows`; a window of preparation prepares the split at least once.

    Raises:
        InputError: fewer images than a batch, or a config of another task.
    """
    check_task(config)
    started_on, device = machine(), usable_device()
    small = device["platform"] == "cpu" and not full
    config = shrunk(config) if small else config
    if num_images < config.batch_size:
        raise InputError(f"--images={num_images} is less than config.batch_size={config.batch_size}")
    size, batch_size = config.data.image_size, config.batch_size
    timing = (num_images, size, batch_size, windows, seconds)
    sources = {
        "device-resident": (measure_resident, *timing),
        "memory-mapped": (measure_mapped, *timing),
    }
    for count in _THREADS:
        sources[f"streamed, {count} threads"] = (measure_streamed, *timing, count, photo_width)
    for count in _THREADS:
        sources[f"JPEGs, {count} threads"] = (measure_preparation, num_images, size, count, windows, photo_width)
    rows = []
    for name, call in sources.items():
        progress(name)
        rows.append({"name": name, **isolated(*call)})
    for row in (row for row in rows if "failed" not in row):
        row["fraction_of_step_rate"] = row["images_per_second"]["median"] / step_rate
        row["cores_for_step_rate"] = step_rate / row["images_per_cpu_second"]
    return {
        "machine": started_on,
        "device": device,
        "versions": versions(),
        "num_images": num_images,
        "image_size": size,
        "batch_size": batch_size,
        "dtype": "uint8",
        "photo_size": [photo_width * 3 // 4, photo_width],
        "small_because_cpu": small,
        "step_rate": step_rate,
        "results": rows,
    }


def measure_resident(num_images: int, size: int, batch_size: int, windows: int, seconds: float) -> dict[str, Any]:
    """Times gathering batches from a split in device memory."""
    rows = {"image": jnp.asarray(_pixels(num_images, size))}
    order = np.random.default_rng(0).integers(0, num_images, (8, batch_size), np.int32)
    batches = itertools.cycle([{"index": jnp.asarray(index)} for index in order])
    take = jax.jit(gather_rows)

    def run(calls: int) -> None:
        for _ in range(calls):
            result = take(next(batches), rows)
        jax.block_until_ready(result)

    return _row(run, batch_size, windows, seconds)


def measure_mapped(num_images: int, size: int, batch_size: int, windows: int, seconds: float) -> dict[str, Any]:
    """Times the transfer of batches from a memory-mapped file, with two batches in transfer as in training."""
    from aia_jax.data.pipeline import train_batches

    keep_freed_memory()  # as training does
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        with RowWriter(path, (size, size, 3), np.uint8) as writer:
            for row in _pixels(num_images, size):
                writer.extend(row[None])
        batches = train_batches({"image": MappedRows(path)}, num_images, batch_size=batch_size, seed=0)
        return _row(_transfer(batches), batch_size, windows, seconds)


def measure_streamed(
    num_images: int, size: int, batch_size: int, windows: int, seconds: float, num_workers: int, photo_width: int
) -> dict[str, Any]:
    """Times the transfer of batches whose photos are read from records and decoded, as `measure_mapped` does."""
    from aia_jax.data.annotation.datasets import load_split
    from aia_jax.data.annotation.photo_records import write_dataset
    from aia_jax.data.pipeline import train_batches

    keep_freed_memory()  # as training does
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root, num_images, photo_width)
        train = root / FOLDERS[_DATASET] / "train.json"
        train.with_name("test.json").write_bytes(train.read_bytes())
        try:
            write_dataset(root, _DATASET, root)
        except InputError as error:  # the extra is not installed
            return {"failed": str(error)}
        fields = {"name": _DATASET, "root": folder, "placement": "stream", "num_workers": num_workers}
        images = load_split(ConfigDict(fields), "train", size).images
        transfer = _transfer(train_batches({"image": images}, num_images, batch_size=batch_size, seed=0))
        transfer(_READ_AHEAD)  # the first batches are ready sooner than the following ones
        return _row(transfer, batch_size, windows, seconds)


def measure_preparation(num_images: int, size: int, num_workers: int, windows: int, photo_width: int) -> dict[str, Any]:
    """Times the preparation of new photos: records, decoding, resizing, writing the memory-mapped copy.

    `start_seconds` is the time for a single photo.
    """
    from aia_jax.data.annotation.datasets import load_split

    with tempfile.TemporaryDirectory() as folder:

        def prepare(root: Path, calls: int) -> None:
            fields = {"name": _DATASET, "root": str(root), "skip_corrupt": False, "num_workers": num_workers}
            for _ in range(calls):
                with tempfile.TemporaryDirectory(dir=folder) as cache:
                    load_split(ConfigDict({**fields, "cache_dir": cache}), "train", size)

        one, all_of_them = Path(folder) / "one", Path(folder) / "all"
        write_photos(one, 1, photo_width)
        write_photos(all_of_them, num_images, photo_width)
        start = time_windows(partial(prepare, one), windows=1, seconds=0.0)["median"]
        return _row(partial(prepare, all_of_them), num_images, windows, seconds=0.0) | {"start_seconds": start}


def write_photos(root: Path, num_images: int, width: int = PHOTO_WIDTH) -> None:
    """Writes a folder in the layout of Corel-5k with generated, noisy scenes and one label each."""
    from PIL import Image

    folder = root / FOLDERS[_DATASET]
    (folder / "images").mkdir(parents=True)
    height = width * 3 // 4
    distinct = []
    for seed in range(min(num_images, _DISTINCT_PHOTOS)):
        grain = np.random.default_rng(seed).normal(0, 6, (height, width, 1))
        pixels = np.clip(scenes.draw(0, seed, width).image[:height] + grain, 0, 255).astype(np.uint8)
        path = folder / f"{seed}.jpeg"
        Image.fromarray(pixels).save(path, quality=90)
        distinct.append(path.read_bytes())
        path.unlink()
    names = [f"{index}.jpeg" for index in range(num_images)]
    for index, name in enumerate(names):
        (folder / "images" / name).write_bytes(distinct[index % len(distinct)])
    samples = [{"image_name": name, "image_labels": ["scene"]} for name in names]
    (folder / "train.json").write_text(json.dumps({"labels": ["scene"], "samples": samples}))


def table(document: dict[str, Any]) -> str:
    """Formats the document as text."""
    size, device = document["image_size"], document["device"]
    photos = " x ".join(map(str, reversed(document["photo_size"])))
    lines = [
        f"{document['num_images']} images at {size} px in batches of {document['batch_size']}, to {device['kind']}; "
        f"photos of {photos}"
    ]
    if document["small_because_cpu"]:
        lines.append(SMALL)
    columns = f"{'img/s':>10}{'min':>10}{'max':>10}{'img/CPU s':>11}{'cores':>7}"
    lines.append(f"\n{'':<28}{columns}   for a step at {document['step_rate']:.0f} img/s")
    for row in document["results"]:
        if "failed" in row:
            lines.append(f"{row['name']:<28}    failed: {row['failed']}")
            continue
        rate, fraction = row["images_per_second"], row["fraction_of_step_rate"]
        feeds = "fast enough" if fraction >= 1 else f"{fraction:.0%} of its rate"
        start = f" ({row['start_seconds']:.1f} s to start)" if "start_seconds" in row else ""
        rates = f"{rate['median']:>10.0f}{rate['min']:>10.0f}{rate['max']:>10.0f}"
        rates += f"{row['images_per_cpu_second']:>11.0f}{row['cores_for_step_rate']:>7.1f}"
        lines.append(f"{row['name']:<28}{rates}   {feeds}{start}")
    return "\n".join(lines)


def _transfer(batches: Iterator[dict[str, np.ndarray]]) -> Callable[[int], None]:
    """Returns a function that transfers a number of batches to the device, with two batches in transfer."""
    mesh = sharding.data_mesh(jax.devices()[:1])

    def run(calls: int) -> None:
        in_transfer: deque[Any] = deque()
        for _ in range(calls):
            in_transfer.append(sharding.put_batch(next(batches), mesh))
            if len(in_transfer) > _IN_FLIGHT:
                jax.block_until_ready(in_transfer.popleft())
        jax.block_until_ready(list(in_transfer))

    return run


def _row(run: Callable[[int], None], count: int, windows: int, seconds: float) -> dict[str, Any]:
    cpu_seconds: list[float] = []  # per call, of all threads

    def measured(calls: int) -> None:
        start = time.process_time()
        run(calls)
        cpu_seconds.append((time.process_time() - start) / calls)

    timed = time_windows(measured, windows=windows, seconds=seconds)
    return {
        "images_per_second": per_second(count, timed),
        "images_per_cpu_second": count / statistics.median(cpu_seconds[-windows:]),
        "seconds_per_call": timed,
    }


def _pixels(num_images: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3), np.uint8)


def _main(arguments: argparse.Namespace) -> int:
    options = {name: value for name, value in timing_options(arguments).items() if name != "torch_compile"}
    document = compare(
        arguments.config,
        num_images=arguments.images or (1024 if arguments.full else 256),
        photo_width=arguments.photo_width,
        step_rate=arguments.step_rate,
        **options,
    )
    return finish(document, table(document), arguments.output)


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument(
        "--images", type=positive, metavar="N", help="images in the split; default: 256, or 1024 with --full"
    )
    width = f"width of the photos in pixels; default: {PHOTO_WIDTH}"
    parser.add_argument("--photo_width", type=positive, default=PHOTO_WIDTH, metavar="W", help=width)
    parser.add_argument(
        "--step_rate", type=at_least(0.001), default=1800.0, metavar="R", help="images per second that a step consumes"
    )
    run_command(parser, _main)
