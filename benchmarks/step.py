"""Times this project's training and prediction step on random images in the memory of the first device."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.models.annotator import build_annotator
from aia_jax.models.attention_pooling import HEAD_FIELDS
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, split_model
from aia_jax.training.optimizer import make_optimizer
from aia_jax.training.state import initial_state
from aia_jax.training.step import make_predict_step, make_train_step
from aia_jax.utils.errors import InputError
from benchmarks.timing import per_second, time_windows

_NUM_LABELS = {"corel5k": 260, "espgame": 268, "iaprtc12": 291, "vg500": 500, "scenes": 22}
TOTAL_STEPS = 1_000_000  # of the schedule; more than any benchmark runs
_PROFILED_STEPS = 3


def check_task(config: ConfigDict) -> None:
    """Raises InputError if the config is not of annotation."""
    if config.task != "annotation":
        raise InputError(f"config.task={config.task!r}: needed is an annotation config, such as configs/corel5k.py")


def labels_of(config: ConfigDict) -> int:
    """Returns the number of labels of an annotation config's data set, which need not exist on this machine.

    Raises:
        InputError: the config is of another task, or its data set has no fixed labels.
    """
    check_task(config)
    if config.data.name not in _NUM_LABELS:
        raise InputError(f"config.data.name={config.data.name!r} is not one of {', '.join(_NUM_LABELS)}")
    return _NUM_LABELS[config.data.name]


def random_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """Returns random `image` uint8 `[B, S, S, 3]` and `target` uint8 `[B, C]` with about 2 % ones."""
    rng, size = np.random.default_rng(config.seed), config.data.image_size
    images = rng.integers(0, 256, (config.batch_size, size, size, 3), np.uint8)
    targets = rng.random((config.batch_size, labels_of(config))) < 0.02
    return {"image": images, "target": targets.astype(np.uint8)}


def head_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the keyword arguments of the attention-pooling heads, here and in PyTorch."""
    return {name: config.model[name] for name in HEAD_FIELDS}


def check_config(config: ConfigDict) -> None:
    """Raises InputError for options that the benchmarks of whole steps do not support, and for an unknown data set."""
    labels_of(config)
    if config.model.freeze_backbone:
        raise InputError("config.model.freeze_backbone: the benchmarks time steps of the whole model")
    if config.accumulate_steps > 1 or config.mesh.fsdp > 1 or config.optimizer.name != "adam":
        raise InputError("the benchmarks time one whole batch on one device with Adam: accumulate_steps=1, mesh.fsdp=1")
    if config.mixup:
        raise InputError("config.mixup: the PyTorch side of the benchmarks has no mixup")


def measure_ours(
    config: ConfigDict, inference: bool, windows: int, seconds: float, profile: str | None = None
) -> dict[str, Any]:
    """Times the training or prediction step.

    Args:
        windows, seconds: see `timing.time_windows`.
        profile: folder for a trace of a few more steps.

    Returns:
        `images_per_second`, `seconds_per_step`, `compile_seconds`, `temporary_gb` of the program, and `peak_gb` of the
        process if the device reports it.

    Raises:
        InputError: the config is not supported.
    """
    check_config(config)
    device = jax.devices()[0]
    make = _prediction if inference else _training
    step, arguments = make(config, sharding.data_mesh([device]))
    start = time.perf_counter()
    compiled = step.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    run = _runner(compiled, arguments, carries_state=not inference)
    timed = time_windows(run, windows=windows, seconds=seconds)
    if profile:
        with jax.profiler.trace(profile):
            run(_PROFILED_STEPS)
    return {
        "images_per_second": per_second(config.batch_size, timed),
        "seconds_per_step": timed,
        "compile_seconds": compile_seconds,
        "temporary_gb": compiled.memory_analysis().temp_size_in_bytes / 1e9,
        "peak_gb": peak_gb(device),
    }


def first_device() -> dict[str, Any]:
    """Returns `platform` and `kind` of the first device."""
    device = jax.devices()[0]
    return {"platform": device.platform, "kind": device.device_kind}


def peak_gb(device: jax.Device) -> float | None:
    """Returns the peak device memory of this process; None if the device does not report it."""
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else peak / 1e9


def _training(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[Any, tuple]:
    task, build = AnnotationTask(config), _builder(config)
    optimizer = make_optimizer(config.optimizer, TOTAL_STEPS)
    graphdef, _ = abstract_weights(build, mesh)
    create = functools.partial(initial_state, build, optimizer, config.seed)
    state = jax.jit(create, out_shardings=sharding.replicated(mesh))()
    step = make_train_step(graphdef, task.loss, optimizer, ema_decay=config.ema_decay, seed=config.seed, mesh=mesh)
    return step, (state, sharding.put_batch(random_batch(config), mesh), {})


def _prediction(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[Any, tuple]:
    task, build = AnnotationTask(config), _builder(config)
    graphdef, _ = abstract_weights(build, mesh)
    create = jax.jit(lambda: split_model(build(nnx.Rngs(config.seed)))[1], out_shardings=sharding.replicated(mesh))
    batch = {"image": random_batch(config)["image"]}
    return make_predict_step(graphdef, task.predict, mesh), (create(), sharding.put_batch(batch, mesh))


def _builder(config: ConfigDict) -> Callable[[Any], Any]:
    return lambda rngs: build_annotator(config.model, labels_of(config), rngs=rngs)


def _runner(compiled: Any, arguments: tuple, *, carries_state: bool) -> Callable[[int], None]:
    """Returns a function that runs a number of steps; each training step takes the state of the previous one."""
    first, *rest = arguments

    def run(calls: int) -> None:
        nonlocal first
        for _ in range(calls):
            result = compiled(first, *rest)
            if carries_state:
                first = result[0]
        jax.block_until_ready(result)

    return run
