"""Kills a training run whose workdir is in object storage, and continues it on another machine.

    python tests/soak/bucket_run.py gs
    python tests/soak/bucket_run.py s3 --output bucket_run.json

The storage is a server on this machine: gcp-storage-emulator for gs://, moto for s3://. A "machine" is an empty cache.
Checks that arrays, records, metrics and annotations are equal, to the bit, to those of a run on disk that was never
killed; that a truncated newest checkpoint is set aside in the bucket; and that problems are reported.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from aia_jax.utils.errors import InputError  # noqa: E402
from aia_jax.utils.storage import open_storage  # noqa: E402
from aia_jax.utils.storage_folders import download_folder  # noqa: E402
from tests.helpers.emulators import emulated_storage  # noqa: E402
from tests.helpers.photos import make_photo  # noqa: E402
from tests.helpers.xla_flags import xla_flags  # noqa: E402
from tests.soak.kills import differences, result  # noqa: E402
from tests.soak.process import SMALL, make_parser, write_report  # noqa: E402

_SETTINGS = {**SMALL, "epochs": 12, "batch_size": 16, "data.num_train": 200, "data.num_test": 40, "model.dropout": 0.1}
_CONFIG = ["--config", "demo", *(f"--config.{name}={value}" for name, value in _SETTINGS.items())]
# The intervals are shorter than those of users, so that a run of half a minute is uploaded several times.
_PROGRAM = """\
import sys
from aia_jax.cli.main import run_program
from aia_jax.training import remote_workdir
remote_workdir.INTERVAL, remote_workdir.SILENCE = 0.5, 4
run_program()
"""


class Machine:
    """A cache, and the commands that use it."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def start(self, *command: str) -> subprocess.Popen:
        """Starts `aia`, in a process group of its own; `output.txt` gets what it prints."""
        environment = {**os.environ, "AIA_JAX_CACHE": str(self.folder / "cache"), "XLA_FLAGS": xla_flags()}
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        environment["JAX_COMPILATION_CACHE_DIR"] = str(self.folder.parent / "programs")  # of all machines, to save time
        with (self.folder / "output.txt").open("a") as output:
            arguments = [sys.executable, "-c", _PROGRAM, *command]
            return subprocess.Popen(arguments, stdout=output, stderr=output, env=environment, start_new_session=True)

    def run(self, *command: str, code: int = 0) -> str:
        """Runs `aia` to its end, and returns what this machine has printed. Raises AssertionError on another code."""
        found = self.start(*command).wait()
        assert found == code, f"exit code {found}\n{self.printed()[-3000:]}"
        return self.printed()

    def printed(self) -> str:
        return (self.folder / "output.txt").read_text().replace(f"{self.folder}/", "")


def annotate(machine: Machine, workdir: str, photos: Path) -> bytes:
    """Returns the annotations of the photos by a run."""
    output = machine.folder / "annotated"
    machine.run("annotate", "--workdir", workdir, "--images", str(photos), "--output", str(output))
    return (output / "annotations.jsonl").read_bytes()


def kill_after_upload(machine: Machine, url: str) -> int:
    """Starts a run in `url`, and kills it when the bucket has a complete checkpoint. Returns the step of this one."""
    storage, root = open_storage(url)
    process = machine.start("train", *_CONFIG, "--workdir", url)
    while not (steps := complete_steps(storage, root)):
        assert process.poll() is None, machine.printed()[-3000:]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return steps[-1]


def complete_steps(storage: Any, root: str) -> list[int]:
    storage.invalidate_cache()
    names = [path.split("/") for path in storage.find(f"{root}/checkpoints")]
    return sorted(int(parts[-2]) for parts in names if parts[-1] == "digests.json" and parts[-3] == "checkpoints")


def truncate_newest(url: str) -> int:
    """Removes the last byte of the largest object of the newest checkpoint. Returns its step."""
    storage, root = open_storage(url)
    step = complete_steps(storage, root)[-1]
    largest = max(storage.find(f"{root}/checkpoints/{step}", detail=True).values(), key=lambda about: about["size"])
    storage.pipe_file(largest["name"], storage.cat_file(largest["name"])[:-1])
    storage.invalidate_cache()
    return step


def refused(machine: Machine, *command: str) -> str:
    """Returns the message of a command that must be refused, and its seconds."""
    start = time.monotonic()
    lines = machine.run(*command, code=2).splitlines()
    return f"{next(line for line in lines if line.startswith('error: '))} ({time.monotonic() - start:.0f} s)"


def check(scheme: str, folder: Path) -> dict[str, Any]:
    """Returns what was done, and the differences from the run on disk."""
    url, photos = f"{scheme}://bucket/runs/demo", folder / "photos"
    for number in range(12):
        make_photo(photos / f"{number}.jpg", number)
    local = Machine(folder / "local")
    local.run("train", *_CONFIG, "--workdir", str(folder / "local run"))
    expected = result(folder / "local run")
    expected["annotations"] = annotate(local, str(folder / "local run"), photos)

    report: dict[str, Any] = {"killed_after_step": kill_after_upload(Machine(folder / "a"), url)}
    second = Machine(folder / "b")
    printed = second.run("train", *_CONFIG, "--workdir", url)
    assert report["killed_after_step"] < max(expected["facts"]), "the run had ended before it was killed"
    report["continued"] = next(line for line in printed.splitlines() if line.startswith("continuing"))
    storage, root = open_storage(url)
    report["checkpoints"] = complete_steps(storage, root)
    report["differences"] = compare(expected, Machine(folder / "c"), url, photos)
    assert complete_steps(storage, root) == report["checkpoints"], "a command that reads has changed the checkpoints"

    report["truncated"] = truncate_newest(url)
    printed = Machine(folder / "d").run("train", *_CONFIG, "--workdir", url)
    report["set_aside"] = next(line for line in printed.splitlines() if "is damaged" in line)
    assert storage.find(f"{root}/damaged/{report['truncated']}"), "the bucket has no damaged checkpoint"
    report["differences"] += compare(expected, Machine(folder / "e"), url, photos)

    report["refused"] = [
        refused(second, "train", *_CONFIG, "--workdir", f"{scheme}://no-such-bucket/x"),
        refused(Machine(folder / "f"), "annotate", "--workdir", f"{scheme}://bucket/none", "--images", str(photos)),
    ]
    variable = "STORAGE_EMULATOR_HOST" if scheme == "gs" else "AWS_ENDPOINT_URL"
    address, os.environ[variable] = os.environ[variable], "http://127.0.0.1:9"
    report["refused"].append(refused(Machine(folder / "g"), "train", *_CONFIG, "--workdir", url))
    os.environ[variable] = address
    return report


def compare(expected: dict[str, Any], machine: Machine, url: str, photos: Path) -> list[str]:
    """Evaluates and annotates with a run on another machine. Returns what is not equal to the bit."""
    machine.run("evaluate", *_CONFIG, "--workdir", url)
    os.environ["AIA_JAX_CACHE"] = str(machine.folder / "cache")
    found = result(download_folder(url))
    found["annotations"] = annotate(machine, url, photos)
    shutil.rmtree(machine.folder / "cache")
    return differences(expected, found)


def main() -> int:
    """The command."""
    parser = make_parser(__doc__)
    parser.add_argument("scheme", choices=("gs", "s3"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bucket-run-") as folder, emulated_storage(given.scheme):
        try:
            report = check(given.scheme, Path(folder))
        except InputError as error:
            report = {"differences": [str(error)]}
    write_report({"storage": given.scheme, **report}, given.output)
    return 1 if report["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
