"""Measures the peak host memory of preparation, training and evaluation: for two data sizes, and over 60 epochs.

    python tests/soak/memory.py --output memory.json

Each run has about 2,000 steps. The peak is reported for each quarter of them, which shows memory that grows with steps
or epochs. Counts anonymous memory, because the system can reclaim pages of memory-mapped files. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from aia_jax.utils.files import write_json
from benchmarks.timing import machine, versions

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = ((2_000, 10), (20_000, 1), (400, 60))  # images, epochs
BATCH_SIZE = 10
_QUARTERS = ("first quarter", "second quarter", "third quarter", "fourth quarter")


def measure(folder: Path, num_images: int, epochs: int) -> dict[str, Any]:
    """Trains on `num_images` with evaluation after each epoch, then evaluates a tenth as many; returns peaks in MB."""
    trained = num_images * 9 // 10  # the rest is the validation part
    settings = {
        "epochs": epochs,
        "batch_size": BATCH_SIZE,
        "log_every": 10,
        "data.image_size": 32,
        "data.num_train": num_images,
        "data.num_test": num_images // 10,
        "data.cache_dir": folder / "cache",
        "model.hidden_size": 16,
        "model.num_heads": 2,
        "model.feedforward_size": 16,
    }
    command = [sys.executable, str(REPOSITORY / "train.py"), f"--config={REPOSITORY}/configs/demo.py"]
    command += [f"--workdir={folder}/run", *(f"--config.{name}={value}" for name, value in settings.items())]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(REPOSITORY)}
    folder.mkdir(parents=True)
    peaks: dict[str, float] = {}
    last_step = epochs * trained // BATCH_SIZE
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        while process.poll() is None:
            step, used = _last_step(folder / "run" / "metrics.jsonl"), _anonymous(process.pid)
            stage = "prepare" if not step else "evaluate" if step >= last_step else _QUARTERS[4 * step // last_step]
            peaks[stage] = max(peaks.get(stage, 0), used)
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit((folder / "output.txt").read_text()[-3000:])
    rounded = {name: round(peak, 1) for name, peak in peaks.items()}
    return {"images": num_images, "epochs": epochs, "steps": last_step, "peak_mb": rounded}


def _last_step(records: Path) -> int:
    try:
        return int(json.loads(records.read_text().splitlines()[-1])["step"])
    except (OSError, IndexError, ValueError):
        return 0


def _anonymous(process: int) -> float:
    """Returns the anonymous memory of a process in MB."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the report, as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        runs = [measure(Path(folder) / str(images), images, epochs) for images, epochs in RUNS]
    document = {"machine": machine(), "packages": versions(), "runs": runs}
    print(json.dumps(document, indent=2))
    if given.output:
        write_json(given.output, document)


if __name__ == "__main__":
    main()
