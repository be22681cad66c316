"""Stops training after a SIGINT or SIGTERM. All processes of a run stop at the same step."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from aia_jax.training.sharding import batch_sharding, replicated

# Steps between two exchanges of signal numbers. The devices are at most 4 steps behind the host, so the result of an
# exchange is ready at the next exchange.
_INTERVAL = 8


class StopRequest:
    """Holds `signum`, the number of the signal that this process has received, or None."""

    signum: int | None = None


class AgreedStop:
    """Stops all processes of a run at the same step after any process receives a signal.

    A single process stops after the current step. Several processes compute the maximum of their signal numbers every
    8 steps. They read this maximum 8 steps later, so that no device or host waits for the result. A run with several
    processes therefore stops 9 to 16 steps after a signal.
    """

    def __init__(self, request: StopRequest, mesh: Mesh):
        self._request, self._mesh = request, mesh
        self._alone = len({device.process_index for device in mesh.devices.flat}) == 1
        self._largest = jax.jit(lambda signums: signums.max(), out_shardings=replicated(mesh))
        self._pending: jax.Array | None = None

    def signum(self, step: int) -> int:
        """Returns the number of the signal that stops the run after `step`, or 0. Call it at every step."""
        if self._alone:
            return self._request.signum or 0
        if step % _INTERVAL:
            return 0
        result, self._pending = self._pending, self._exchange()
        return 0 if result is None else int(result)

    def signum_now(self) -> int:
        """Waits until all processes call this method. Returns the number of the signal that stops the run, or 0."""
        return (self._request.signum or 0) if self._alone else int(self._exchange())

    def _exchange(self) -> jax.Array:
        own = np.full(len(self._mesh.local_devices), self._request.signum or 0, np.int32)
        return self._largest(jax.make_array_from_process_local_data(batch_sharding(self._mesh), own))


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Context manager that records the first SIGINT or SIGTERM. A second signal has its usual effect."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    def note(signum: int, _frame: object) -> None:
        request.signum = signum
        restore()
        # Uses `os.write`, because `print` is not safe in a signal handler.
        os.write(2, b"\nstopping after this step or evaluation; send the signal again to stop at once\n")

    for signum in previous:
        signal.signal(signum, note)
    try:
        yield request
    finally:
        restore()
