"""Measures the peak host memory of preparation, training and evaluation: for two data sizes, and over 60 epochs.

    python tests/soak/memory.py --output memory.json

Each run has about 2,000 steps. The peak is reported for each quarter of them, which shows memory that grows with steps
or epochs. Counts anonymous memory, because the system can reclaim pages of memory-mapped files. Linux only.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from benchmarks.timing import machine, versions  # noqa: E402
from tests.soak.process import last_step, make_parser, memory, start_training, write_report  # noqa: E402

RUNS = ((2_000, 10), (20_000, 1), (400, 60))  # images, epochs
BATCH_SIZE = 10
_QUARTERS = ("first quarter", "second quarter", "third quarter", "fourth quarter")


def measure(folder: Path, num_images: int, epochs: int) -> dict[str, Any]:
    """Trains on `num_images` with evaluation after each epoch, then evaluates a tenth as many; returns peaks in MB."""
    trained = num_images * 9 // 10  # the rest is the validation part
    settings = {"epochs": epochs, "batch_size": BATCH_SIZE, "log_every": 10}
    settings |= {"data.num_train": num_images, "data.num_test": num_images // 10}
    peaks: dict[str, float] = {}
    end = epochs * trained // BATCH_SIZE
    process = start_training(folder, settings)
    while process.poll() is None:
        step, used = last_step(folder), memory("RssAnon", process.pid) / 1e6
        stage = "prepare" if not step else "evaluate" if step >= end else _QUARTERS[4 * step // end]
        peaks[stage] = max(peaks.get(stage, 0), round(used, 1))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit((folder / "output.txt").read_text()[-3000:])
    return {"images": num_images, "epochs": epochs, "steps": end, "peak_mb": peaks}


def main() -> None:
    """The command."""
    given = make_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        runs = [measure(Path(folder) / str(images), images, epochs) for images, epochs in RUNS]
    write_report({"machine": machine(), "packages": versions(), "runs": runs}, given.output)


if __name__ == "__main__":
    main()
