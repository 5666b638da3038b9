"""Memory that stays with the process: the kernel is not asked for it again."""

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, torch
from dmt_ds.engine.cpu_memory import keep_freed_memory

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(megabytes * 2**20 // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults(96)
plain = faults(80)
keep_freed_memory()
faults(96)
print(plain, faults(80))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_a_block_that_was_freed_is_taken_again_without_the_kernel() -> None:
    run = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    plain, kept = map(int, run.stdout.split())
    assert plain > 1000, "without the switch pages are asked for: else this shows nothing"
    assert kept < 100
