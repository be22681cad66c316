"""Opens the workdirs of earlier runs: weights, facts about them, configs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from aia_jax.training import sharding
from aia_jax.training.model_arrays import flat_arrays, select_weights
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json

if TYPE_CHECKING:
    from aia_jax.training.checkpoint import Checkpointer  # imported where it is used: Orbax may not be installed


def best_step(checkpointer: "Checkpointer") -> int | None:
    """Returns the step of the best evaluated epoch; without any the newest step; None without checkpoints."""
    steps = checkpointer.steps()
    metrics = {step: info["metric"] for step in steps if "metric" in (info := checkpointer.info(step))}
    return max(metrics, key=lambda step: (metrics[step], -step)) if metrics else max(steps, default=None)


def open_run(workdir: Path) -> "Checkpointer":
    """Opens the checkpoints of a workdir.

    Raises:
        InputError: there are none.
    """
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir} holds no checkpoints; train first, or name the folder given to train.py")
    from aia_jax.training.checkpoint import Checkpointer

    return Checkpointer(workdir)


def run_arrays(workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the weights of the best epoch of a run, or converted weights.

    Returns:
        The arrays by path, as `model_arrays.flat_arrays` gives them, and the checkpoint's info.

    Raises:
        InputError: no epoch was evaluated yet, or the checkpoint is damaged.
    """
    try:
        with open_run(workdir) as checkpointer:
            step = best_step(checkpointer)
            info = {} if step is None else checkpointer.info(step)
            if "weights" not in info:
                raise InputError(f"{workdir / 'checkpoints'} holds no evaluated epoch yet; let train.py finish one")
            checkpointer.check_undamaged(step)
            stored = checkpointer.restore_weights(step, sharding.replicated(sharding.data_mesh()))
            return flat_arrays(select_weights(stored, info["weights"])), info
    except (InputError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax and TensorStore raise errors of many types for damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the checkpoint in {workdir} is damaged, or of another version: {reason:.300}") from error


@contextlib.contextmanager
def config_errors_as_input_errors(workdir: Path) -> Iterator[None]:
    """Raises InputError if code in the context finds missing or wrong fields in the config of a run."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        path = workdir / "config.json"
        raise InputError(f"{path} is damaged, or of another version than this one: {error}") from error


def check_complete_model(workdir: Path, info: dict[str, Any]) -> None:
    """Raises InputError if a checkpoint has a backbone without a head."""
    if info.get("part") == "backbone":
        raise InputError(f"{workdir} holds a backbone alone; give it as config.init_backbone")


def read_run_config(workdir: Path) -> dict[str, Any]:
    """Reads the config that a run was trained with.

    Raises:
        InputError: the file is missing, or is not such a config.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise InputError(f"{workdir} is no folder of a run: {path} is not there; name the folder given to train.py")
    config = read_json(path, f"the config of the run in {workdir}")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise InputError(f"{path} does not say what model {workdir} holds; name another folder of a run")
    return config
