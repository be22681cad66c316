"""SIGINT and SIGTERM ask the loop to finish its step, save and stop; of several processes, all at the same step."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from aia_jax.training.sharding import batch_sharding, replicated

# Steps between two questions. More than the loop keeps in flight, so that an answer is there when it is read.
_INTERVAL = 8


class StopRequest:
    """Attributes: signum: the signal that asked this process to stop, or None."""

    signum: int | None = None


class AgreedStop:
    """What was asked of any process, known to all of them at the same step.

    A process alone answers at once. Several ask each other every 8 steps by the maximum over a number of each, and read
    the answer at the next question, so that neither the devices nor the host wait: a run stops after 9 to 16 steps.

    Args:
        request: what this process was asked.
        mesh: of the devices of all processes.
    """

    def __init__(self, request: StopRequest, mesh: Mesh):
        self._request, self._mesh = request, mesh
        self._alone = len({device.process_index for device in mesh.devices.flat}) == 1
        self._largest = jax.jit(lambda signums: signums.max(), out_shardings=replicated(mesh))
        self._pending: jax.Array | None = None

    def signum(self, step: int) -> int:
        """The signal that asks to stop after `step`, or 0; every process asks at every step."""
        if self._alone:
            return self._request.signum or 0
        if step % _INTERVAL:
            return 0
        answered, self._pending = self._pending, self._ask()
        return 0 if answered is None else int(answered)

    def signum_now(self) -> int:
        """The same, waiting for the other processes; every process asks."""
        return (self._request.signum or 0) if self._alone else int(self._ask())

    def _ask(self) -> jax.Array:
        mine = np.full(len(self._mesh.local_devices), self._request.signum or 0, np.int32)
        return self._largest(jax.make_array_from_process_local_data(batch_sharding(self._mesh), mine))


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the context the first SIGINT or SIGTERM is noted; a second one acts as it would have without us."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    def note(signum: int, _frame) -> None:
        request.signum = signum
        restore()
        os.write(2, b"\nstopping after this step or evaluation; once more to stop at once\n")  # safe in a handler

    for signum in previous:
        signal.signal(signum, note)
    try:
        yield request
    finally:
        restore()
