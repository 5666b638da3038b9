"""What runs out of memory is told as that, wherever on the device it happens."""

import pytest

from dmt_ds.engine.ranks.memory_errors import explained
from dmt_ds.errors import OutOfMemoryError


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
    ],
)
def test_memory_that_torchs_own_allocator_does_not_manage_counts_too(text):
    with pytest.raises(OutOfMemoryError, match=r"^out of memory.*: lower it$"), explained(lambda: "lower it"):
        raise RuntimeError(text)


def test_another_failure_stays_what_it_is():
    with pytest.raises(RuntimeError, match="an illegal memory access"), explained(lambda: "lower it"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
