"""Kills a training run repeatedly, and compares its results with those of a run that was never killed.

    python tests/soak/kills.py --kills 20 --seed 0 --output kills.json

Each kill is a SIGKILL to the process group at a random moment: while data are prepared, within a step, while a
checkpoint is written, or while an epoch is evaluated. Weights, averages, optimizer state, records and final metrics
must be equal to the bit.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.tree_util import keystr

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from aia_jax.training.checkpoint import Checkpointer  # noqa: E402
from tests.soak.process import last_step, make_parser, start_training, write_report  # noqa: E402

PHASES = ("save", "evaluation", "step", "preparation")
_STEPS_AN_EPOCH = 200 * 9 / 10 / 16  # a tenth is the validation part
_SETTINGS = {"epochs": 4, "batch_size": 16, "data.num_train": 200, "data.num_test": 40, "model.dropout": 0.1}
_TIMES = ("images_per_second", "input_wait")


class Run:
    """A training run in `folder` that can be started, killed and started again."""

    def __init__(self, folder: Path):
        self.folder, self.workdir, self.cache = folder, folder / "run", folder / "cache"

    def finish(self) -> None:
        """Runs to the end; raises AssertionError with the output if the run fails."""
        code = start_training(self.folder, _SETTINGS).wait()
        assert code == 0, f"exit code {code}\n{(self.folder / 'output.txt').read_text()[-3000:]}"

    def kill(self, phase: str, rng: random.Random) -> bool:
        """Starts the run and kills it at a random moment of `phase`; returns False if the run ended before."""
        if phase == "preparation":
            shutil.rmtree(self.cache, ignore_errors=True)
        reached, delay = self._reached(phase, rng), rng.uniform(0, 0.03)
        process = start_training(self.folder, _SETTINGS)
        while not reached():
            if process.poll() is not None:
                assert process.returncode == 0, (self.folder / "output.txt").read_text()[-3000:]
                return False
            time.sleep(0.0005)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL

    def _reached(self, phase: str, rng: random.Random) -> Callable[[], bool]:
        if phase == "preparation":
            return lambda: any(self.cache.rglob(".*~*~*~*"))
        if phase == "save":
            return lambda: any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
        before = last_step(self.folder)
        end = int((int(before / _STEPS_AN_EPOCH + 0.1) + 1) * _STEPS_AN_EPOCH)
        wanted = end if phase == "evaluation" else rng.randint(before + 1, max(end - 1, before + 1))
        return lambda: last_step(self.folder) >= wanted


def result(workdir: Path) -> dict[str, Any]:
    """Returns the records, infos, arrays and final metrics of a run."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    with Checkpointer(workdir) as checkpointer:
        facts = {step: checkpointer.info(step) for step in checkpointer.steps()}
    items = [f"{step}/{name}" for step in facts for name in ("weights", "progress")]
    return {
        "records": [{name: value for name, value in line.items() if name not in _TIMES} for line in records],
        "facts": facts,
        "arrays": {item: _arrays(workdir / "checkpoints" / item) for item in items},
        "metrics": json.loads((workdir / "evaluation" / "metrics.json").read_text()),
    }


def _arrays(folder: Path) -> Any:
    """Reads all arrays of a checkpoint's item."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def differences(expected: Any, actual: Any) -> list[str]:
    """Returns the paths of values that are not equal to the bit."""

    def leaves(tree: Any) -> set[tuple[str, Any]]:
        pairs = jax.tree.leaves_with_path(
            tree, is_leaf=lambda leaf: not (isinstance(leaf, dict | list | tuple) and leaf)
        )
        return {(keystr(path), leaf.tobytes() if isinstance(leaf, np.ndarray) else str(leaf)) for path, leaf in pairs}

    return sorted({path for path, _ in leaves(expected) ^ leaves(actual)})


def soak(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kills and continues a run; returns the kills by phase and the differences from a run that was never killed."""
    rng = random.Random(seed)
    whole, killed = Run(folder / "whole"), Run(folder / "killed")
    whole.finish()
    expected = result(whole.workdir)
    done = dict.fromkeys(PHASES, 0)
    found = []
    while sum(done.values()) < kills:
        phase = PHASES[sum(done.values()) % len(PHASES)]
        if killed.kill(phase, rng):
            done[phase] += 1
        else:  # the run ended: compare it, and start a new one
            found += differences(expected, result(killed.workdir))
            shutil.rmtree(killed.workdir)
    killed.finish()
    found += differences(expected, result(killed.workdir))
    left = [path.name for path in (killed.workdir / "checkpoints").iterdir() if not path.name.isdecimal()]
    return {"kills": done, "differences": found + left}


def main() -> int:
    """The command."""
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        report = soak(Path(folder), given.kills, given.seed)
    write_report({"seed": given.seed, **report}, given.output)
    return 1 if report["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
