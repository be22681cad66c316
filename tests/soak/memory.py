"""Peak host memory of preparing, training and evaluating at two sizes, ten times apart, and over 2,000 steps.

    python tests/soak/memory.py --output memory.json

Counts anonymous memory: pages of the memory-mapped copy are the system's to take back. Linux only.
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

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL, LARGE, STEPS, BATCH_SIZE = 2_000, 20_000, 2_000, 10
_WARM = 400  # steps after which nothing more should grow


def measure(folder: Path, num_images: int) -> dict[str, Any]:
    """Trains on `num_images` for 2,000 steps, and evaluates on a tenth as many; in MB."""
    trained = num_images * 9 // 10  # the rest is for validation
    epochs = round(STEPS * BATCH_SIZE / trained)
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
            stage = "prepare" if not step else "evaluate" if step >= last_step else "train"
            for name in (stage, *["train_warm"] * (stage == "train" and step <= _WARM)):
                peaks[name] = max(peaks.get(name, 0), used)
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit((folder / "output.txt").read_text()[-3000:])
    return {"images": num_images, "steps": last_step, "peak_mb": {name: round(peak, 1) for name, peak in peaks.items()}}


def _last_step(records: Path) -> int:
    try:
        return int(json.loads(records.read_text().splitlines()[-1])["step"])
    except (OSError, IndexError, ValueError):
        return 0


def _anonymous(process: int) -> float:
    """MB of a process that no file holds."""
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
        runs = [measure(Path(folder) / str(size), size) for size in (SMALL, LARGE)]
    text = json.dumps({"runs": runs}, indent=2)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
