"""The run's records: JSON lines and TensorBoard events."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from aia_jax.files import write_bytes


class MetricWriter:
    """Appends to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard`; only process 0 writes.

    Args:
        workdir: the run's folder.
        resume_step: lines of later steps are dropped, for a resumed run writes them again.
    """

    def __init__(self, workdir: Path, resume_step: int = 0):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = Path(workdir) / "metrics.jsonl"
        kept = _lines_up_to(path, resume_step)
        write_bytes(path, "".join(kept).encode())
        self._lines = path.open("a")
        self._events = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=resume_step + 1, flush_secs=30)

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """One line `{"step", "kind", **values}`; the numbers among `values` go to TensorBoard as `kind/name`."""
        if not self._active:
            return
        self._lines.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        if self._active:
            self._lines.close()
            self._events.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()


def _lines_up_to(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that a killed run left half-written
            if json.loads(line)["step"] <= step:
                kept.append(line.rstrip("\n") + "\n")
    return kept
