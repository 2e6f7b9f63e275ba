"""The heap of a worker: it keeps what is freed, for the next step needs as much again.

glibc gives memory back to the system when much of it is free at the end of the heap, or a large block at once. A stage
frees its activations in each step and asks for them again in the next one; each page comes back empty, by a fault: for
a stage of 6 ms that was up to a tenth of its time.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What glibc's mallopt calls them."""
KEPT = 2**30
USERS = ("MALLOC_", "GLIBC_TUNABLES")
LARGEST_IN_HEAP = 32 * 2**20
"""As large as glibc lets it be."""


def keep_freed_memory() -> None:
    """Keep what this process frees: all below what is still in use, and up to a gigabyte at the heap's end.

    What the user set for malloc in the environment stays as it is, and so do other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith(USERS) for name in os.environ):
        return
    mallopt(TRIM_THRESHOLD, KEPT)
    mallopt(MMAP_THRESHOLD, LARGEST_IN_HEAP)
