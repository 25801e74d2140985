"""Settings of glibc's malloc: keep freed memory in the process."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed() -> bool:
    """Let this process keep the memory that it frees, where its C library is glibc.

    glibc hands blocks of the size of activations back to the system at once, and every training step on a CPU then
    waits until the system has found and zeroed the same pages again: a tenth to a quarter of the time of a small
    network. What is computed stays the same; the process holds on to the most that it ever used. Settings in the
    environment (``MALLOC_...``, ``GLIBC_TUNABLES``) are left alone.

    Returns:
        Whether it was done.
    """
    if not sys.platform.startswith("linux") or any(k.startswith(("MALLOC_", "GLIBC_TUNABLES")) for k in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
