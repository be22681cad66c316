"""Reads, writes and checks files in a run's workdir: the config, the environment and the weights."""

import contextlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

from aia_jax.training import sharding
from aia_jax.training.checkpoint_recovery import saved_steps
from aia_jax.training.model_arrays import flat_arrays, select_weights
from aia_jax.utils.config_fields import FIELDS, flatten
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, write_json
from aia_jax.utils.messages import differences
from aia_jax.utils.packages import version_numbers
from aia_jax.version import __version__

if TYPE_CHECKING:
    from aia_jax.training.checkpoint import Checkpointer  # `open_run` imports it, because Orbax may not be installed

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def package_versions(*others: str) -> dict[str, str]:
    """Returns `{package: version}` for packages that influence results and for `others`. Omits missing packages."""
    found = {}
    for name in (*_PACKAGES, *others):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_record(workdir: Path, config: ConfigDict) -> None:
    """Writes the config to `config.json`, and versions and devices to `environment.json`. Only process 0 writes."""
    if jax.process_index():
        return
    write_json(workdir / "config.json", config.to_dict())
    environment = {
        "packages": {"aia_jax": __version__, **package_versions()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    write_json(workdir / "environment.json", environment)


def record_command(workdir: Path, command: Sequence[str]) -> None:
    """Adds the command of a run to `environment.json`."""
    path = workdir / "environment.json"
    write_json(path, {**json.loads(path.read_bytes()), "command": list(command)})


def check_same_config(workdir: Path, config: ConfigDict, *, free: tuple[str, ...] = ()) -> None:
    """Checks that `config` can continue or evaluate the run in `workdir`.

    The fields in `free`, and the fields that `utils.config_fields` marks as resumable, may differ. A run without
    checkpoints can continue with any config.

    Raises InputError if other fields differ. The message lists these fields with both values.
    """
    path = workdir / "config.json"
    if not path.exists() or not saved_steps(workdir):
        return
    try:
        written = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); delete it, or give another workdir") from error
    flat = flatten(json.loads(json.dumps(config.to_dict())))
    earlier = {name: field.earlier for name, field in FIELDS.items() if field.earlier is not None and name in flat}
    may_differ = {*free, *(name for name, field in FIELDS.items() if field.resumable)}
    there, given = (
        {f"  config.{name}": value for name, value in fields.items() if name not in may_differ}
        for fields in (earlier | flatten(written), flat)
    )
    if differing := differences(there, given, "given"):
        problem = f"{workdir} holds a run of another config; give another workdir, or the same fields:"
        raise InputError("\n".join([problem, *differing]))


def check_same_data(workdir: Path, info: dict[str, Any], described: dict[str, Any]) -> None:
    """Raises InputError if the facts about the data differ between a checkpoint (`info`) and a task (`described`)."""
    if info.get("labels") != described.get("labels"):
        there, here = (len(facts.get("labels", ())) for facts in (info, described))
        raise InputError(
            f"{workdir} was trained on other labels, or on another order of them, than the data list "
            f"({there} there, {here} here); give data with its own `labels`"
        )
    there, here = info.get("channel_stats"), described.get("channel_stats")
    if there and here and there != here:
        raise InputError(
            f"{workdir} was trained on photos of other channel statistics ({there} there, {here} here), which "
            "normalise the photos; aia import-labels --like takes over those of earlier data"
        )
    if "train_rows" in described and info["train_rows"] != described["train_rows"]:
        raise InputError(
            f"{workdir} was started with other training data, or in another order; give the same data, or another "
            f"workdir, in which --config.init_from={workdir} starts from these weights"
        )
    if info.get("annotator") != described.get("annotator"):
        raise InputError(
            f"{workdir} was trained on maps and keywords of another annotator; set config.data.annotator to it"
        )
    if info.get("vocabulary") != described.get("vocabulary"):
        there, here = ((facts.get("vocabulary") or {}).get("words", 0) for facts in (info, described))
        raise InputError(
            f"{workdir} was trained with another vocabulary ({there} words there, {here} here); "
            "set config.data.vocabulary to its file"
        )
    if info.get("pieces") != described.get("pieces"):
        there, here = (len(facts.get("pieces") or ()) for facts in (info, described))
        raise InputError(
            f"{workdir} was trained with the word pieces of other captions ({there:,} there, {here:,} here); give the "
            "training captions and the config.model.text_features of that model"
        )
    if info.get("text_encoder") != described.get("text_encoder"):
        raise InputError(
            f"{workdir} was trained with another text encoder ({info.get('text_encoder', 'gru')} there, "
            f"{described.get('text_encoder', 'gru')} here); set config.model.text as there, or install its weights"
        )


def open_run(workdir: Path) -> "Checkpointer":
    """Opens the checkpoints of a workdir. Raises InputError if there are none."""
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir} holds no checkpoints; train first, or name the folder given to aia train")
    from aia_jax.training.checkpoint import Checkpointer

    return Checkpointer(workdir)


def run_arrays(workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the weights of a run's best epoch, or the converted weights in a workdir.

    Returns:
        The arrays, `{path: array}` (see `flat_arrays`), and the dict `info` of the checkpoint (see `Checkpointer`).

    Raises InputError if JAX has no device, no epoch was evaluated yet, or there is no checkpoint that can be read.
    """
    mesh = sharding.data_mesh()
    try:
        with open_run(workdir) as checkpointer:
            step, info = checkpointer.best()
            checkpointer.check_undamaged(step)
            stored = checkpointer.restore_weights(step, sharding.replicated(mesh))
            return flat_arrays(select_weights(stored, info["weights"])), info
    except (InputError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax and TensorStore raise errors of many types for damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        causes = "it may be damaged or of another version"
        raise InputError(f"the checkpoint in {workdir} cannot be read; {causes}: {reason:.300}") from error


@contextlib.contextmanager
def config_errors_as_input_errors(workdir: Path) -> Iterator[None]:
    """Context manager. Turns errors about missing or wrong fields in a run's `config.json` into InputError."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else error
        path = workdir / "config.json"
        raise InputError(f"{path} is damaged, or of another version than this one: {problem}") from error


def check_complete_model(workdir: Path, info: dict[str, Any]) -> None:
    """Raises InputError if a checkpoint contains only a backbone. `info` is the dict of the checkpoint."""
    if info.get("part") == "backbone":
        raise InputError(f"{workdir} holds a backbone alone; give it as config.init_backbone")


def read_run_config(workdir: Path) -> dict[str, Any]:
    """Reads a run's config from `config.json`. Raises InputError if the file is missing or is not a run's config."""
    path = workdir / "config.json"
    if not path.is_file():
        raise InputError(f"{workdir} is no folder of a run: {path} is not there; name the folder given to aia train")
    config = read_json(path, f"the config of the run in {workdir}")
    written = "0"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # converted weights have no such file
        written = json.loads((workdir / "environment.json").read_bytes())["packages"]["aia_jax"]
    if version_numbers(written) > version_numbers(__version__):
        raise InputError(f"{workdir} was written by aia_jax {written}, and this is {__version__}; install {written}")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise InputError(f"{path} does not say what model {workdir} holds; name another folder of a run")
    return config
