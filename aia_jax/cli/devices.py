"""Adds the flags for several devices or hosts, and sets up the devices before the first computation.

Only `--xla_preset` sets XLA flags. Its preset multi_gpu splits the all-reduce of the gradients into large parts, of
which the first can start during the backward pass. The values are common (https://docs.nvidia.com/jax-toolbox), but
were not measured here.
"""

import argparse
import functools
import os
import re
import sys
import tempfile
import threading
from typing import Any

from tqdm import tqdm

from aia_jax.cli.flags import Parser
from aia_jax.data.cache import cache_root
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import os_errors_as_input_errors
from aia_jax.utils.memory import keep_freed_memory
from aia_jax.utils.paths import local_path

PRESETS: dict[str, dict[str, str]] = {
    "multi_gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": "true",  # overlaps collectives with computation
        "xla_gpu_all_reduce_combine_threshold_bytes": str(32 << 20),  # gradients of TResNet-M: 97 MB, so four pieces
        "xla_gpu_all_gather_combine_threshold_bytes": str(32 << 20),  # weights, with config.mesh.fsdp
        "xla_gpu_reduce_scatter_combine_threshold_bytes": str(32 << 20),  # gradients, with config.mesh.fsdp
    },
    # Repeated runs give the same bits, but are slower: XLA uses no atomics, and does not choose kernels by timing.
    "deterministic": {"xla_gpu_deterministic_ops": "true"},
}
# Switches of JAX that are set for other programs in the environment, such as JAX_ENABLE_X64. Types depend on them.
_SWITCHES = {"jax_enable_x64": False, "jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"}

_COMPILATION = "/jax/core/compile/backend_compile_duration"  # JAX's name of the event
_SLOW = 5  # seconds


def add_device_arguments(parser: Parser) -> None:
    """Adds `--distributed`, `--num_processes`, `--process_id` and `--xla_preset`."""
    group = parser.add_argument_group("devices and hosts")
    hosts = "run on several processes, which get the same command and share the workdir. auto: under SLURM, Kubernetes,"
    hosts += " Open MPI or on a TPU pod; HOST:PORT: a free port on the host of process 0"
    group.add_argument("--distributed", metavar="auto|HOST:PORT", help=hosts)
    group.add_argument("--num_processes", type=int, metavar="N", help="number of processes, with HOST:PORT")
    group.add_argument("--process_id", type=int, metavar="I", help="index of this process, from 0, with HOST:PORT")
    preset = "XLA flags to set and print; those in $XLA_FLAGS take precedence"
    group.add_argument("--xla_preset", choices=list(PRESETS), help=preset)


def set_up_devices(arguments: argparse.Namespace) -> None:
    """Sets up the allocator and the XLA flags, connects to the other hosts, and keeps compiled programs.

    Must be called before JAX uses a device.

    Raises:
        InputError: the flags contradict each other, or `--distributed=auto` finds no known cluster.
    """
    keep_freed_memory()
    apply_preset(arguments.xla_preset)
    join_hosts(arguments.distributed, arguments.num_processes, arguments.process_id)
    enable_compilation_cache()


def check_devices() -> None:
    """Starts JAX's platforms, with the switches that the results depend on as this package needs them.

    Raises InputError if JAX cannot start a platform.
    """
    import jax

    from aia_jax.training.sharding import available_devices

    for switch, needed in _SWITCHES.items():
        if getattr(jax.config, switch) != needed:
            print(f"{switch.upper()} is ignored: aia_jax needs {needed!r}", file=sys.stderr)
            jax.config.update(switch, needed)
    available_devices()
    _announce_slow_compilations()


def use_cpu() -> None:
    """Leaves the GPUs and TPUs of this machine to other processes. Call it before JAX uses a device."""
    import jax

    jax.config.update("jax_platforms", "cpu")


@functools.cache
def _announce_slow_compilations() -> None:
    """From now on, prints a message when a program has been compiling for 5 seconds, once for each name."""
    import jax.monitoring

    timers: dict[int, threading.Timer] = {}
    announced = set()

    def announce(message: str) -> None:
        if message not in announced:
            announced.add(message)
            tqdm.write(message, sys.stderr)

    def start(event: str, _: float, fun_name: str = "", **__: Any) -> None:
        if event == _COMPILATION:
            message = f"compiling the program {fun_name} takes more than {_SLOW} s"
            timer = timers[threading.get_ident()] = threading.Timer(_SLOW, announce, [message])
            timer.daemon = True
            timer.start()

    def stop(event: str, _: float, **__: Any) -> None:
        if event == _COMPILATION and (timer := timers.pop(threading.get_ident(), None)):
            timer.cancel()

    jax.monitoring.register_scalar_listener(start)
    jax.monitoring.register_event_duration_secs_listener(stop)


def enable_compilation_cache() -> None:
    """Checks the devices. Keeps compiled programs on disk if possible, so that a second call starts faster.

    Their folder is $JAX_COMPILATION_CACHE_DIR or, if this is not set, `programs` in the cache of this package.

    Raises InputError if JAX cannot start a platform, or $AIA_JAX_CACHE is not a local path.
    """
    import jax

    check_devices()
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if os.environ.get("AIA_JAX_CACHE"):
        local_path(os.environ["AIA_JAX_CACHE"])
    try:
        folder = cache_root("") / "programs"
        with os_errors_as_input_errors(folder, None, "$AIA_JAX_CACHE names another place"):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except InputError as error:
        print(f"compiled programs are not kept: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def apply_preset(name: str | None) -> None:
    """Puts the flags of a preset before those in `XLA_FLAGS`, because later flags have precedence. Prints all flags."""
    if name is None:
        return
    ours = [f"--{flag}={value}" for flag, value in PRESETS[name].items()]
    os.environ["XLA_FLAGS"] = " ".join([*ours, *os.environ.get("XLA_FLAGS", "").split()])
    print(f"XLA_FLAGS={os.environ['XLA_FLAGS']!r}", flush=True)


def join_hosts(
    distributed: str | None, num_processes: int | None, process_id: int | None, *, timeout_s: int = 300
) -> None:
    """Connects this process to the other processes of a run, if there are any.

    A process that is alone on its host uses all devices of the host. Under SLURM and Open MPI, of several processes on
    a host, each uses one device. CPU processes communicate through Gloo, which is JAX's default on CPUs.

    Args:
        distributed: "auto", the HOST:PORT of process 0, or None for a run with one process.
        num_processes, process_id: number of processes, and index of this process. Only for HOST:PORT.
        timeout_s: seconds to wait for the other processes. Then the process prints an error and exits with code 2.

    Raises:
        InputError: the flags contradict each other, or `--distributed=auto` finds no known cluster.
    """
    _check(distributed, num_processes, process_id)
    if distributed is None:
        return
    import jax

    # The training loop handles SIGTERM. If this service handled the signal, the training loop would not get it.
    jax.config.update("jax_enable_preemption_service", False)
    where = "the other processes" if distributed == "auto" or process_id == 0 else f"process 0 at {distributed}"
    # JAX aborts with a stack trace after its own timeout, so ours is shorter.
    watch = threading.Timer(timeout_s, _give_up, [where, timeout_s])
    watch.daemon = True
    watch.start()
    address = None if distributed == "auto" else distributed
    try:
        jax.distributed.initialize(
            address, num_processes, process_id, _local_device_ids(), initialization_timeout=timeout_s + 60
        )
    except (ValueError, RuntimeError) as error:
        if distributed == "auto":
            raise InputError(
                f"--distributed=auto: no cluster was recognised ({error}); start it under SLURM, Kubernetes, Open MPI "
                "or on a TPU pod, or give --distributed=HOST:PORT --num_processes=N --process_id=I"
            ) from error
        raise InputError(f"--distributed={distributed}: {error}") from error
    finally:
        watch.cancel()


def _local_device_ids() -> list[int] | None:
    """Returns [], which means all devices of the host, or None where JAX must choose the devices of this process.

    Without this, JAX gives each process of SLURM or Open MPI one device, even if no other process uses the host.
    """
    # The form of SLURM is "1", "1(x4)" for four nodes, or "2,1(x3)". Without a launcher, nothing shares the host.
    tasks = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or os.environ.get("SLURM_STEP_TASKS_PER_NODE") or "1"
    alone = re.fullmatch(r"1(\(x\d+\))?", tasks)
    return [] if alone and not os.environ.get("JAX_LOCAL_DEVICE_IDS") else None


def _check(distributed: str | None, num_processes: int | None, process_id: int | None) -> None:
    if distributed in (None, "auto"):
        if num_processes is None and process_id is None:
            return
        if distributed is None:
            raise InputError("--num_processes and --process_id need --distributed=HOST:PORT, the address of process 0")
        raise InputError("--distributed=auto finds --num_processes and --process_id itself; leave them out")
    host, _, port = distributed.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--distributed={distributed}: neither auto nor HOST:PORT, such as 10.0.0.1:1234")
    if num_processes is None or process_id is None:
        raise InputError(f"--distributed={distributed} needs --num_processes and --process_id too")
    if not 0 <= process_id < num_processes:
        given = f"--process_id={process_id} --num_processes={num_processes}"
        raise InputError(f"{given}: process IDs range from 0 to --num_processes - 1")


def _give_up(where: str, timeout_s: int) -> None:
    message = f"error: {where} did not answer within {timeout_s} s; start all processes, with the same address\n"
    os.write(2, message.encode())
    os._exit(2)
