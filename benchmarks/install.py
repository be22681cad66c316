"""Measures what an installation costs: MB downloaded, MB on the disk, seconds.

    python -m benchmarks.install --python python3.13 --output install.json

Each extra is installed in a new virtual environment, without pip's cache. Set `PIP_CONFIG_FILE=/dev/null` where pip's
configuration names local packages.
"""

import argparse
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aia_jax.cli.flags import Parser
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from benchmarks.comparison import run_command
from benchmarks.timing import machine


def measure(python: str, source: Path, extras: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Installs `source` with each of `extras`, and with none.

    Returns:
        For each extra, and for "" (none): `packages`, `download_mb`, `disk_mb` (MB of 1,000,000 bytes) and `seconds`.

    Raises:
        InputError: an installation failed.
    """
    return {extra: _install(python, source, extra) for extra in tqdm(["", *extras], unit="extra", dynamic_ncols=True)}


def _install(python: str, source: Path, extra: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="install-") as folder:
        _call([python, "-m", "venv", folder])
        before, started, report = _size(folder), time.perf_counter(), Path(folder, "report.json")
        pip = [f"{folder}/bin/pip", "install", "--quiet", "--no-cache-dir"]
        _call([*pip, "--report", str(report), f"{source}[{extra}]" if extra else str(source)])
        seconds = time.perf_counter() - started
        urls = [package["download_info"]["url"] for package in json.loads(report.read_text())["install"]]
        return {
            "packages": len(urls),
            "download_mb": round(sum(_download_size(url) for url in urls if url.startswith("http")) / 1e6, 1),
            "disk_mb": round((_size(folder) - before) / 1e6),
            "seconds": round(seconds),
        }


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed: {done.stderr[-500:]}")


def _size(folder: str) -> int:
    return sum(path.lstat().st_blocks for path in Path(folder).rglob("*")) * 512


def _download_size(url: str) -> int:
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as response:
        return int(response.headers["Content-Length"])


def _run(arguments: argparse.Namespace) -> None:
    """Prints a table and, with `--output`, writes the numbers as JSON."""
    measured = measure(arguments.python, arguments.source, arguments.extras.split(",") if arguments.extras else [])
    for extra, row in measured.items():
        sizes = f"{row['download_mb']:>8.1f} MB downloaded {row['disk_mb']:>6} MB on disk {row['seconds']:>5} s"
        print(f"{extra or 'no extra':<12}{row['packages']:>4} packages {sizes}")
    if arguments.output:
        version = subprocess.run([arguments.python, "--version"], capture_output=True, text=True).stdout.split()[-1]
        write_json(arguments.output, {"machine": machine(), "python": version, "install": measured})


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--python", default="python3", metavar="PYTHON", help="the interpreter; default: python3")
    parser.add_argument("--source", type=Path, default=Path(), metavar="DIR", help="a checkout or a wheel; default: .")
    parser.add_argument(
        "--extras",
        default="pretrained,text,download,onnx,parity,tfds,aot,test",
        metavar="NAMES",
        help="extras, separated by commas; default: all",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    run_command(parser, _run)
