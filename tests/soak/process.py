"""Parts of the soak commands: reports, training processes and their steps, and memory. Linux only."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.xla_flags import xla_flags

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {
    "log_every": 1,
    "data.image_size": 32,
    "model.hidden_size": 16,
    "model.num_heads": 2,
    "model.feedforward_size": 16,
}


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flag `--output`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the report, as JSON")
    return parser


def write_report(report: dict[str, Any], output: Path | None) -> None:
    """Prints a report, and writes it to `output` if that is given."""
    text = json.dumps(report, indent=2)
    print(text)
    if output:
        output.write_text(text + "\n")


def start_training(folder: Path, settings: dict[str, Any]) -> subprocess.Popen:
    """Starts a small demo run in `folder`, in a process group of its own; `output.txt` gets what it prints."""
    command = [sys.executable, str(REPOSITORY / "train.py"), f"--config={REPOSITORY}/configs/demo.py"]
    fields = {**SMALL, "data.cache_dir": folder / "cache", **settings}
    command += [f"--workdir={folder}/run", *(f"--config.{name}={value}" for name, value in fields.items())]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(), "PYTHONPATH": str(REPOSITORY)}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)


def last_step(folder: Path) -> int:
    """The last recorded step of a run in `folder`, or 0."""
    try:
        return int(json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, IndexError, ValueError):
        return 0


def forget_peak() -> int:
    """Resets `VmHWM` of this process, and returns the current memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(field: str = "VmHWM", process: int | str = "self") -> int:
    """A memory field of a process in bytes, by default the peak of this one; 0 without such a process."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
