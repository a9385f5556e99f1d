"""What the C library does with memory that is given back."""

from __future__ import annotations

import contextlib
import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_LARGE = 4 << 20
_KEPT = 4 << 20
_ARENAS = 2


def keep() -> None:
    """Keeps some MiB of it for the next request: what serves pages of some hundred KiB spends more time on having the
    kernel clear the same memory again and again than on the pages. Threads share it, or each would keep as much.
    Elsewhere than with glibc nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_ARENA_MAX, _ARENAS)
    mallopt(_MMAP_THRESHOLD, _LARGE)
    mallopt(_TRIM_THRESHOLD, _KEPT)


def trim() -> None:
    """Gives the system back what was needed to begin with, and is not any more."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
