"""What the C library does with memory that is given back."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGE = 4 << 20
_KEPT = 16 << 20


def keep() -> None:
    """Keeps up to 16 MiB of it for the next request: what serves pages of some hundred KiB spends more time on having
    the kernel clear the same memory again and again than on the pages. Elsewhere than with glibc nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGE)
    mallopt(_TRIM_THRESHOLD, _KEPT)
