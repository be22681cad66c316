"""Times this project's training and prediction step on random images in the memory of the first device."""

import contextlib
import functools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.models.annotator import build_annotator
from aia_jax.models.attention_pooling import HEAD_FIELDS
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, select_weights, split_model
from aia_jax.training.optimizer import make_optimizer
from aia_jax.training.state import TrainState, initial_state
from aia_jax.training.step import make_predict_step, make_train_step
from aia_jax.utils.errors import InputError
from aia_jax.utils.memory import keep_freed_memory
from benchmarks.kernel_times import Speeds, compare_with_model
from benchmarks.timing import attempt, per_second, time_windows

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
    config: ConfigDict,
    inference: bool,
    windows: int,
    seconds: float,
    profile: str | None = None,
    speeds: Speeds | None = None,
) -> dict[str, Any]:
    """Times the training or prediction step.

    Args:
        windows, seconds: see `timing.time_windows`.
        profile: folder for a trace of a few more steps.
        speeds: of the device. If given, the result also compares the measured and the modelled time of the kernels.

    Returns:
        `images_per_second`, `seconds_per_step`, `compile_seconds`, `temporary_gb` of the program, and `peak_gb` of the
        process if the device reports it; with `speeds` also `kernels`, see `kernel_times.compare_with_model`.

    Raises:
        InputError: the config is not supported.
    """
    check_config(config)
    if not inference:
        keep_freed_memory()  # as in `aia train`
    device = jax.devices()[0]
    start = time.perf_counter()
    compiled = compile_step(config, [device], {}, inference=inference)
    compile_seconds = time.perf_counter() - start
    run = _runner(compiled, config, sharding.data_mesh([device]), inference)
    timed = time_windows(run, windows=windows, seconds=seconds)
    row = {
        "images_per_second": per_second(config.batch_size, timed),
        "seconds_per_step": timed,
        "compile_seconds": compile_seconds,
        "temporary_gb": compiled.memory_analysis().temp_size_in_bytes / 1e9,
        "peak_gb": peak_gb(device),
    }
    if profile or speeds:
        with contextlib.ExitStack() as stack:
            folder = profile or stack.enter_context(tempfile.TemporaryDirectory())
            with jax.profiler.trace(folder, profiler_options=_profiler_options()):
                run(_PROFILED_STEPS)
            if speeds:
                steps = (_PROFILED_STEPS, config.batch_size)
                row["kernels"] = attempt(compare_with_model, Path(folder), compiled.as_text(), *steps, speeds)
    return row


def first_device() -> dict[str, Any]:
    """Returns `platform` and `kind` of the first device."""
    device = jax.devices()[0]
    return {"platform": device.platform, "kind": device.device_kind}


def peak_gb(device: jax.Device) -> float | None:
    """Returns the peak device memory of this process; None if the device does not report it."""
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else peak / 1e9


def compile_step(config: ConfigDict, devices: list[Any], options: dict[str, Any], *, inference: bool) -> Any:
    """Compiles the training or prediction step of an annotation config for `devices`.

    The devices may be descriptions, see `benchmarks.targets`.
    """
    labels = labels_of(config)
    if config.model.freeze_backbone and not inference:
        raise InputError("config.model.freeze_backbone: this benchmark counts the step of the whole model")
    mesh = sharding.data_mesh(devices, fsdp=config.mesh.fsdp)
    microbatches = 1 if inference else config.accumulate_steps
    sharding.check_batch_size("batch_size", config.batch_size, mesh, microbatches)
    task = AnnotationTask(config)
    graphdef, weights = abstract_weights(functools.partial(build, config), mesh)
    size, rows = config.data.image_size, sharding.batch_sharding(mesh)

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.uint8, sharding=rows)

    if inference:
        raw = select_weights(weights, "raw")
        step = make_predict_step(graphdef, task.predict, mesh, jax.tree.map(lambda leaf: leaf.sharding, raw))
        lowered = step.lower(raw, {"image": array(size, size, 3)})
    else:
        optimizer = make_optimizer(config.optimizer, TOTAL_STEPS)
        create = functools.partial(initial_state, functools.partial(build, config), optimizer, config.seed)
        state = sharding.shard_shapes(jax.eval_shape(create), mesh)
        step = make_train_step(
            graphdef,
            task.loss,
            optimizer,
            ema_decay=config.ema_decay,
            seed=config.seed,
            mesh=mesh,
            accumulate_steps=microbatches,
            state_sharding=jax.tree.map(lambda leaf: leaf.sharding, state),
        )
        batch = {"image": array(size, size, 3), "target": array(labels)}
        lowered = step.lower(state, batch, {})
    return lowered.compile(compiler_options=options)


def build(config: ConfigDict, rngs: nnx.Rngs) -> nnx.Module:
    """Builds the annotator of a config with the labels of its data set."""
    return build_annotator(config.model, labels_of(config), rngs=rngs)


def _random_weights(config: ConfigDict) -> dict[str, Any]:
    """Returns random weights on the host: XLA takes long to compile a model's own initialisation for a GPU."""
    rng = np.random.default_rng(config.seed)

    def values(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        fan_in = max(1, math.prod(leaf.shape[:-1]))
        return (rng.standard_normal(leaf.shape, np.float32) / fan_in**0.5).astype(leaf.dtype)

    weights = jax.eval_shape(lambda: split_model(build(config, nnx.Rngs(config.seed)))[1])
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), weights["stats"])
    return {name: jax.tree.map(values, part) for name, part in weights.items()} | {"stats": ones}


def _profiler_options() -> jax.profiler.ProfileOptions:
    """Leaves out Python's calls, which slow the host down."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


def _runner(compiled: Any, config: ConfigDict, mesh: jax.sharding.Mesh, inference: bool) -> Callable[[int], None]:
    """Returns a function that runs a number of steps; each training step takes the state of the previous one."""
    batch, first, rest = random_batch(config), _random_weights(config), ()
    create = lambda weights: weights  # noqa: E731
    if inference:
        del batch["target"]
    else:
        create = functools.partial(TrainState.create, optimizer=make_optimizer(config.optimizer, TOTAL_STEPS))
        rest = ({},)
    first = jax.jit(create, out_shardings=sharding.replicated(mesh))(first)
    arguments = (sharding.put_batch(batch, mesh), *rest)

    def run(calls: int) -> None:
        nonlocal first
        for _ in range(calls):
            result = compiled(first, *arguments)
            if not inference:
                first = result[0]
        jax.block_until_ready(result)

    return run
