"""A rank that runs out of memory says so in a line with what to lower; knows no setting."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dmt_ds.errors import OutOfMemoryError

_OUTSIDE_OF_TORCH = re.compile(
    r"DefaultCPUAllocator: (can't|not enough) (allocate )?memory|CUDA error: out of memory|"
    r"Cuda failure \d+ 'out of memory'|(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED"
)
"""What fails first may not be torch's own allocator: the CPU's, NCCL's buffers, a library's handle, a kernel's code."""
_ASKED_FOR = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)
_HAS = re.compile(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")


@contextmanager
def explained(remedy: Callable[[], str]) -> Iterator[None]:
    """Turn "out of memory" into a line with a remedy, around all that a rank does.

    Args:
        remedy: what to lower, as the end of a sentence.

    Raises:
        OutOfMemoryError: in the place of torch's, Python's or the allocator's own.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory{_figures(str(error))}: {remedy()}") from error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _OUTSIDE_OF_TORCH.search(str(error)) is not None


def _figures(text: str) -> str:
    """What torch says of sizes, in its own units: ` (tried to allocate 2.00 GiB, 1.20 GiB of 79.10 GiB free)`."""
    asked, has = _ASKED_FOR.search(text), _HAS.search(text)
    parts = [f"tried to allocate {asked[1]}"] if asked else []
    parts += [f"{has[2]} of {has[1]} free"] if has else []
    return f" ({', '.join(parts)})" if parts else ""
