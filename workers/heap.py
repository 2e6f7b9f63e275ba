"""The heap of a worker: it keeps what is freed, for the next step needs as much again.

glibc gives memory back to the system when much of it is free at the end of the heap, or a large block at once. A stage
frees its activations in each step and asks for them again in the next one; each page comes back empty, by a fault: for
a stage of 6 ms that was up to a tenth of its time.
"""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What glibc's mallopt calls them."""
KEPT = 2**30
LARGEST_IN_HEAP = 32 * 2**20
"""As large as glibc lets it be."""


def keep_freed_memory() -> None:
    """Keep up to a gigabyte of what this process frees; other C libraries are left as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, KEPT)
        mallopt(MMAP_THRESHOLD, LARGEST_IN_HEAP)
