"""What a workdir says of its run: the saved steps, the resolved config, the package versions and the devices."""

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

from aia_jax.utils.config import FIELDS, Field
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from aia_jax.utils.overrides import flatten
from aia_jax.version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def saved_steps(workdir: Path) -> list[int]:
    """Steps of the whole checkpoints in a workdir, rising; those that a kill left half-written do not count."""
    folder = Path(workdir) / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def package_versions(*others: str) -> dict[str, str]:
    """Versions of those packages the numbers depend on that are installed, and of `others`."""
    found = {}
    for name in (*_PACKAGES, *others):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_record(workdir: Path, config: ConfigDict) -> None:
    """`config.json` and `environment.json`, by process 0."""
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
    """Adds to an InputError about `config.data.root` the one that the run in `workdir` was trained with, if another."""
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
    """Raises InputError, listing the fields that differ (but the `free` ones), if `workdir` holds another run."""
    path = workdir / "config.json"
    if not path.exists() or not saved_steps(workdir):
        return  # nothing was saved yet: a first attempt that failed binds nobody
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
