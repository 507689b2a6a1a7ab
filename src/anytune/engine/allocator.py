"""Keep freed memory in the process: a training step on a CPU asks for the same large blocks again and again.

glibc hands blocks of many megabytes back to the system as soon as they are freed, and the system gives them out again
page by page, each filled with zeros. Logits over a vocabulary come and go twice a step, so that this alone can take a
fifth of it. Values do not change, and neither does the peak of memory but for fragmentation.

It concerns the whole process, so nothing of the library does it by itself: the command line and the workers of a
fan-out do, for their own processes.
"""

from __future__ import annotations

import os
import sys

# glibc, malloc.h
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; returns whether it agreed.

    Nothing is done on other systems, or where a ``MALLOC_...`` variable says that the user has a setting of their own.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # no block in a mapping of its own, and no shrinking of the heap
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
