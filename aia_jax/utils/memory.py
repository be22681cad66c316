"""Settings of the memory allocator for programs that allocate the same large buffers again in each step."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LEAST = 128 << 20  # bytes; the limit of kept buffers on a machine with little memory
_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of the container, in bytes or "max"


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for later use, instead of returning it to the system.

    Otherwise the system clears the pages of each large buffer of XLA again in each step. Call this function before
    other threads start. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    # Larger buffers are not kept, because they would fragment too much of the memory.
    largest = min(max(_memory() // 32, _LEAST), 2**31 - 1)
    mallopt(_ARENA_MAX, 1)  # XLA allocates in its own threads, whose own heaps cannot hold large buffers
    mallopt(_MMAP_THRESHOLD, largest)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 64 << 20)


def _memory() -> int:
    """Returns the memory of this machine or, if it is smaller, the limit of this container, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        memory = min(memory, int(_LIMIT.read_text()))
    return memory
