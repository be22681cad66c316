"""Settings of the memory allocator for programs that allocate the same large buffers again in each step."""

import ctypes
import sys

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGEST = 128 << 20  # kept, larger buffers would fragment the memory


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for later use, instead of returning it to the system.

    Otherwise the system clears the pages of each large buffer of XLA again in each step. Call this function before
    other threads start. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    mallopt(_ARENA_MAX, 1)  # XLA allocates in its own threads, whose own heaps cannot hold large buffers
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 64 << 20)
