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

    Nothing is changed where malloc is not glibc's (elsewhere than on Linux), or under TINYVIT_MALLOC=system.
    """
    return _told({M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: LARGEST})


@functools.cache
def share_one_arena() -> bool:
    """Tell malloc to make no arenas for threads from now on; return whether it was told, see `keep_freed_memory`.

    An array that one thread has freed serves another then. And an arena of threads cannot be kept whole: what is free
    at its end goes back to the system in pieces of 64 MiB. It must be said before other threads begin, some of which
    are libraries' own: a thread that begins later may be given an arena that is there already.
    """
    return _told({M_ARENA_MAX: 1})


def _told(settings: dict[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc" or os.environ.get("TINYVIT_MALLOC") == "system":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    told = [mallopt(name, value) for name, value in settings.items()]
    return all(told)
