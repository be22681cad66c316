"""Times windows of several calls after a warm-up, and describes the machine and the packages."""

import contextlib
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from aia_jax.training.runs import package_versions
from aia_jax.utils.errors import InputError
from aia_jax.version import __version__

_PEERS = (
    *("torch", "timm", "triton", "scikit-learn", "pillow"),
    *("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)
_MOST_CALLS = 10_000  # in a window
_START = time.perf_counter()


def time_windows(run: Callable[[int], object], *, windows: int, seconds: float) -> dict[str, float | int]:
    """Measures the seconds per call over several windows of calls.

    Args:
        run: makes the given number of calls and returns when the device has finished them.
        windows: number of windows to time.
        seconds: approximate length of a window.

    Returns:
        `median`, `min` and `max` seconds per call, `windows` and `calls_per_window`.
    """
    run(2)
    start = time.perf_counter()
    run(1)
    once = max(time.perf_counter() - start, 1e-9)
    calls = min(max(1, math.ceil(seconds / once)), _MOST_CALLS)
    times = []
    for _ in range(windows):
        start = time.perf_counter()
        run(calls)
        times.append((time.perf_counter() - start) / calls)
    spread = {"median": statistics.median(times), "min": min(times), "max": max(times)}
    return {**spread, "windows": windows, "calls_per_window": calls}


def time_interleaved(calls: dict[str, Callable[[], object]], repeats: int = 9) -> dict[str, dict[str, float]]:
    """Times functions in turns, so that the load of the machine affects all alike; the first turn is not counted.

    Returns:
        For each function, the medians `seconds` and `cpu_seconds` (of all threads) of a call.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            call()
            times[name].append((time.perf_counter() - start, time.process_time() - start_cpu))
    medians = {
        name: [statistics.median(column) for column in zip(*own[1:], strict=True)] for name, own in times.items()
    }
    return {name: {"seconds": seconds, "cpu_seconds": cpu} for name, (seconds, cpu) in medians.items()}


def progress(step: str) -> None:
    """Prints what a benchmark does next, and the seconds since its start, to standard error."""
    print(f"[{time.perf_counter() - _START:4.0f} s] {step}", file=sys.stderr, flush=True)


def per_second(count: int, seconds: dict[str, float | int]) -> dict[str, float]:
    """Converts seconds per call to a rate, where a call processes `count` items; `min` is from the slowest window."""
    slowest, fastest = seconds["max"], seconds["min"]
    return {"median": count / seconds["median"], "min": count / slowest, "max": count / fastest}


class Worker:
    """A process that runs functions, so that a crash is contained. Started when needed, also after a crash."""

    def __init__(self) -> None:
        self._process = self._pipe = None

    def run(self, function: Callable[..., dict[str, Any]], *args: Any, timeout: float | None = None) -> dict[str, Any]:
        """Runs `function(*args)` in the process and returns its result.

        Args:
            timeout: seconds after which the process is killed.

        Returns:
            The result, or `{"failed": reason}` if the function raised an error or took too long, or the process died.

        Raises:
            InputError: `function` raised it.
        """
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,))
            self._process.start()
            theirs.close()
        try:
            self._pipe.send((function, args))
            if self._pipe.poll(timeout):
                result = self._pipe.recv()
            else:
                self.stop()
                result = {"failed": f"it took more than the {timeout:.0f} s that were left"}
        except (EOFError, OSError):
            self.stop()
            result = {"failed": "its process died, perhaps for lack of memory"}
        if isinstance(result, InputError):
            raise result
        return result

    def stop(self) -> None:
        """Kills the process, so that its device memory is free."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def isolated(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Runs `function(*args)` in a new process, so that its device memory is free afterwards; see `Worker.run`."""
    worker = Worker()
    try:
        return worker.run(function, *args)
    finally:
        worker.stop()


def machine() -> dict[str, Any]:
    """Describes the machine and its load: the average number of runnable processes in the last minute."""
    return {
        "platform": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions(*others: str) -> dict[str, str]:
    """Returns the versions of Python, of the installed packages that affect most numbers, and of `others`."""
    return {"aia_jax": __version__, **package_versions(*_PEERS, *others), "python": platform.python_version()}


def attempt(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Returns `function(*args)`, or `{"failed": reason}` if it raised an error other than InputError."""
    try:
        return function(*args)
    except InputError:
        raise
    except Exception as error:  # A failed variant is a result; many of torch's errors cannot be pickled.
        lines = str(error).strip().splitlines() or [""]
        return {"failed": f"{type(error).__name__}: {lines[0][:300]}"}


def _serve(pipe: Any) -> None:
    """Runs the functions that arrive until the other side is closed."""
    with contextlib.suppress(EOFError):
        while True:
            function, args = pipe.recv()
            try:
                result = attempt(function, *args)
            except InputError as error:
                result = error
            pipe.send(result)
