"""Freed memory is kept for the next array of its size, instead of going back to the operating system.

A train step frees and asks for the same large arrays again and again. As glibc comes, each goes back to the system
when it is freed, and each new one arrives page by page, zeroed, at the first touch of every page: that took more time
than the arithmetic on it. Kept memory is as large as the largest step, and no larger.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
LARGEST = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Tell this process's malloc to keep what is freed, for good; return whether it was told.

    Nothing is changed where malloc is not glibc's (elsewhere than on Linux), or under TINYVIT_MALLOC=system. Threads
    share one arena then: an array that one has freed serves another, and arenas of threads cannot be kept whole.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get("TINYVIT_MALLOC") == "system":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: LARGEST, M_ARENA_MAX: 1}
    done = [mallopt(name, value) for name, value in settings.items()]
    return all(done)
