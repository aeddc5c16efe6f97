"""Freed memory that the next step takes again, instead of the system's."""

import ctypes
import platform

KEPT = 2**28
"""Free bytes kept at the end of the heap: what a training step of a small model frees and takes again."""
LARGEST = 2**25
"""Bytes up to which a block comes from the heap; glibc allows no more."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for this process; elsewhere nothing happens.

    Left to itself it gives the tensors of a step back to the system, more or less of them by chance, and takes them
    again page by page in the next: up to 10,000 page faults, a tenth of a step of ``tiny``.

    Returns:
        whether it was told.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_TRIM_THRESHOLD, KEPT)) and bool(mallopt(_M_MMAP_THRESHOLD, LARGEST))
