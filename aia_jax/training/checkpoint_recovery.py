"""Finds damaged checkpoints by the SHA-256 digests of their files, and moves these checkpoints to `damaged/`."""

import json
import shutil
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import sha256_of_file

UNFINISHED = ".orbax-checkpoint-tmp"  # is in the folder name of a checkpoint until Orbax commits it
_DIGESTS = "digests.json"
# Orbax rewrites these files when it commits a checkpoint, after the digests were computed.
_REWRITTEN = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write_digests(folder: Path) -> None:
    """Writes the SHA-256 of every file below `folder` to `digests.json` in `folder`."""
    (folder / _DIGESTS).write_text(json.dumps(_digests(folder), indent=1))


def find_damage(folder: Path) -> str:
    """Returns the first problem of a checkpoint, such as "weights/d/1a2b is changed".

    Returns "" if there is no problem, or if the checkpoint has no digests.

    Raises InputError if a file is there and cannot be read. A file system may refuse it for a moment.
    """
    path = folder / _DIGESTS
    try:
        expected = dict(json.loads(path.read_bytes()).items())
        found = _digests(folder)
    except FileNotFoundError:
        return ""
    except (ValueError, AttributeError) as error:
        return f"{_DIGESTS} cannot be read: {error}"
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}; make it readable") from error
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if found[name] != expected.get(name):
            return f"{name} is changed" if name in expected else f"{name} is not a file of this checkpoint"
    return ""


def recover(workdir: Path, *, shared: bool = True) -> list[str]:
    """Removes incomplete checkpoints from a workdir, and moves damaged checkpoints to `<workdir>/damaged`.

    The caller must hold the lock `<workdir>/.lock`. In a run with several processes, every process must call this
    function. Process 0 changes the files and returns a line of text per damaged checkpoint. The others return [].
    If the processes do not share the workdir (`shared`), each of them does this in its own copy.

    Raises InputError if all checkpoints are damaged.
    """
    lines = _set_aside_damaged(workdir) if jax.process_index() == 0 or not shared else []
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints are checked")
    return lines


def _set_aside_damaged(workdir: Path) -> list[str]:
    folder = workdir / "checkpoints"
    for unfinished in folder.glob(f"*{UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    steps = saved_steps(workdir)
    damaged = {step: problem for step in steps if (problem := find_damage(folder / str(step)))}
    if damaged and len(damaged) == len(steps):
        listed = "\n".join(f"  {step}: {problem}" for step, problem in damaged.items())
        raise InputError(
            f"all checkpoints in {folder} are damaged; put back a copy of one, or give another workdir\n{listed}"
        )
    lines = []
    for step, problem in damaged.items():
        target = workdir / "damaged" / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(target)
        lines.append(f"the checkpoint of step {step} is damaged ({problem}); moved to {target}")
    return lines


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (_DIGESTS, *_REWRITTEN)]
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}


def saved_steps(workdir: Path) -> list[int]:
    """Returns the steps of the checkpoints in a workdir in increasing order. Ignores incomplete checkpoints."""
    folder = Path(workdir) / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
