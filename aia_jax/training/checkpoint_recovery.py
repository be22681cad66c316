"""What a kill or a failing disk left of a run's checkpoints; whole ones are told by digests of their files."""

import json
import shutil
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import sha256_of_file

UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of what Orbax is still writing
_DAMAGED = "damaged"
_DIGESTS = "digests.json"
# Orbax writes these once more when it commits a checkpoint, after the digests were taken.
_REWRITTEN = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write_digests(folder: Path) -> None:
    """Writes `digests.json`, the SHA-256 of every file below `folder`, into it."""
    (folder / _DIGESTS).write_text(json.dumps(_digests(folder), indent=1))


def damage(folder: Path) -> str:
    """What is wrong with the files of `folder`, such as "weights/d/1a2b is changed"; "" where nothing is, or where no
    digests were written."""
    path = folder / _DIGESTS
    try:
        expected = dict(json.loads(path.read_text()).items())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, AttributeError) as error:
        return f"{_DIGESTS} cannot be read: {error}"
    try:
        found = _digests(folder)
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is gone"
        if found[name] != expected.get(name):
            return f"{name} is changed" if name in expected else f"{name} does not belong there"
    return ""


def recover(workdir: Path) -> list[str]:
    """Leaves whole checkpoints alone in a workdir; only for whoever alone writes to it.

    Half-written ones are removed, damaged ones move to `<workdir>/damaged`. Several processes call it together; the
    first one acts.

    Returns:
        What was set aside, a line each.

    Raises:
        InputError: all of them are damaged.
    """
    lines = _set_aside(workdir / "checkpoints", workdir / _DAMAGED) if jax.process_index() == 0 else []
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints are looked through")
    return lines


def _set_aside(folder: Path, elsewhere: Path) -> list[str]:
    for unfinished in folder.glob(f"*{UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
    damaged = {step: problem for step in steps if (problem := damage(folder / str(step)))}
    if damaged and len(damaged) == len(steps):
        listed = "\n".join(f"  {step}: {problem}" for step, problem in damaged.items())
        raise InputError(
            f"all checkpoints in {folder} are damaged; put back a copy of one, or give another workdir\n{listed}"
        )
    lines = []
    for step, problem in damaged.items():
        target = elsewhere / str(step)
        shutil.rmtree(target, ignore_errors=True)
        elsewhere.mkdir(exist_ok=True)
        (folder / str(step)).rename(target)
        lines.append(f"the checkpoint of step {step} is damaged ({problem}); moved to {target}")
    return lines


def _digests(folder: Path) -> dict[str, str]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {name: path for name, path in files.items() if name != _DIGESTS and path.name not in _REWRITTEN}
    return {name: sha256_of_file(path) for name, path in kept.items()}
