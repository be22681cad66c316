"""SIGINT and SIGTERM ask the loop to finish its step, save and stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


class StopRequest:
    """Attributes: signum: the signal that asked to stop, or None."""

    signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None


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
