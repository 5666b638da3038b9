"""Memory that a step frees stays with the process for the next step; for training on a CPU.

glibc takes a large block from the kernel and gives it back when it is freed, and the kernel clears every page of it
once more: half of what DeepSpeed's update costs beyond the optimizer goes there.
"""

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h
_GROWS_BY = 64 * 2**20


def keep_freed_memory() -> None:
    """Keep what a step needs at its peak from now on; whoever has set glibc's own variables is left alone."""
    is_set = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(n.startswith("MALLOC_") for n in os.environ)
    if platform.libc_ver()[0] != "glibc" or is_set:
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_TRIM_THRESHOLD, -1)  # which is read as the largest size there is
    mallopt(_M_TOP_PAD, _GROWS_BY)
    mallopt(_M_MMAP_MAX, 0)
