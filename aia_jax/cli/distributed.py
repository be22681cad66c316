"""Several processes, on one or more hosts, as one run: the flags --distributed, --num_processes and --process_id."""

import os
import sys
import threading

import jax
from absl import flags

from aia_jax.utils.errors import InputError

_JOIN_SECONDS = 300


def define_host_flags() -> None:
    """The flags by which a process finds the others; they are read by `join_hosts`."""
    flags.DEFINE_string(
        "distributed",
        None,
        "Run on the devices of several processes, which all get the same command and see the same workdir: "
        "auto under SLURM, Kubernetes, Open MPI or on a TPU pod; else HOST:PORT of process 0, a free port there, "
        "with --num_processes and --process_id.",
    )
    flags.DEFINE_integer("num_processes", None, "With --distributed=HOST:PORT: how many processes there are.")
    flags.DEFINE_integer("process_id", None, "With --distributed=HOST:PORT: which of them this is, from 0 on.")
    for name in ("distributed", "num_processes", "process_id"):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def join_hosts(
    distributed: str | None, num_processes: int | None, process_id: int | None, *, timeout_s: int = _JOIN_SECONDS
) -> None:
    """Meets the other processes, if there are any; before anything is computed.

    On CPUs the processes talk through Gloo, JAX's default there.

    Args:
        distributed: "auto", the HOST:PORT of process 0, or None for a run of one process.
        num_processes, process_id: with HOST:PORT, and only then.
        timeout_s: seconds to wait for the others; then the process says so and ends with exit code 2.

    Raises:
        InputError: flags that do not fit together, or no cluster that is recognised.
    """
    if distributed is None:
        if num_processes is not None or process_id is not None:
            raise InputError("--num_processes and --process_id need --distributed=HOST:PORT, the address of process 0")
        return
    _check(distributed, num_processes, process_id)
    # A stop is agreed upon by the training loop; this service would take SIGTERM away from it.
    jax.config.update("jax_enable_preemption_service", False)
    where = "the other processes" if distributed == "auto" or process_id == 0 else f"process 0 at {distributed}"
    # JAX aborts with a stack trace when its own time is up: ours is up first.
    watch = threading.Timer(timeout_s, _give_up, [where, timeout_s])
    watch.daemon = True
    watch.start()
    address = None if distributed == "auto" else distributed
    try:
        jax.distributed.initialize(address, num_processes, process_id, initialization_timeout=timeout_s + 60)
    except (ValueError, RuntimeError) as error:
        if distributed == "auto":
            raise InputError(
                f"--distributed=auto: no cluster was recognised ({error}); start it under SLURM, Kubernetes, Open MPI "
                "or on a TPU pod, or give --distributed=HOST:PORT --num_processes=N --process_id=I"
            ) from error
        raise InputError(f"--distributed={distributed}: {error}") from error
    finally:
        watch.cancel()


def _check(distributed: str, num_processes: int | None, process_id: int | None) -> None:
    if distributed == "auto":
        if num_processes is not None or process_id is not None:
            raise InputError("--distributed=auto finds --num_processes and --process_id itself; leave them out")
        return
    host, _, port = distributed.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--distributed={distributed}: neither auto nor HOST:PORT, such as 10.0.0.1:1234")
    if num_processes is None or process_id is None:
        raise InputError(f"--distributed={distributed} needs --num_processes and --process_id too")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id} --num_processes={num_processes}: the processes are numbered from 0 to "
            f"--num_processes - 1"
        )


def _give_up(where: str, timeout_s: int) -> None:
    message = f"error: {where} did not answer within {timeout_s} s; start all processes, with the same address\n"
    os.write(2, message.encode())
    os._exit(2)
