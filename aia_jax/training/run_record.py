"""Records in a workdir: saved steps, config, package versions and devices."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from aia_jax.utils.config import FIELDS, Field, flatten
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from aia_jax.version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def saved_steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints in a workdir, in increasing order, without incomplete checkpoints of killed runs."""
    folder = Path(workdir) / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def package_versions(*others: str) -> dict[str, str]:
    """Versions of the installed packages that influence results, and of `others`."""
    found = {}
    for name in (*_PACKAGES, *others):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_record(workdir: Path, config: ConfigDict) -> None:
    """Writes `config.json` and `environment.json`; only process 0 does so."""
    if jax.process_index():
        return
    write_json(workdir / "config.json", config.to_dict())
    devices = jax.devices()
    environment = {
        "packages": {"aia_jax": __version__, **package_versions()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in devices],
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    write_json(workdir / "environment.json", environment)


@contextlib.contextmanager
def hint_trained_root(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Adds the `config.data.root` of the run in `workdir` to an InputError about another `config.data.root`."""
    try:
        yield
    except InputError as error:
        written = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            written = json.loads((workdir / "config.json").read_text())["data"]["root"]
        if "config.data.root" not in str(error) or written in (None, config.data.root):
            raise
        raise InputError(
            f"{error}\n{workdir} was trained with --config.data.root={shlex.quote(str(written))}"
        ) from error


def check_same_config(workdir: Path, config: ConfigDict, *, free: tuple[str, ...] = ()) -> None:
    """Checks that `config` may continue or evaluate the run in `workdir`.

    Args:
        workdir: without checkpoints, any config is allowed.
        config: of the new command.
        free: fields that may differ in addition to those that are resumable.

    Raises:
        InputError: other fields differ; the message lists them with both values.
    """
    path = workdir / "config.json"
    if not path.exists() or not saved_steps(workdir):
        return
    try:
        written = flatten(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged ({error}); delete it, or give another workdir") from error
    given = flatten(json.loads(json.dumps(config.to_dict())))
    differing = [
        f"  config.{field}: {written.get(field, 'absent')} there, {given.get(field, 'absent')} given"
        for field in sorted(written.keys() | given.keys())
        if not FIELDS.get(field, Field()).resumable and field not in free and written.get(field) != given.get(field)
    ]
    if differing:
        lines = "\n".join(differing)
        raise InputError(f"{workdir} holds a run of another config; give another workdir, or the same fields:\n{lines}")
