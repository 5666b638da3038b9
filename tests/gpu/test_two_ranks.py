"""What two ranks on CUDA share; one process with all images, on the CPU, says what must come out."""

import subprocess
from pathlib import Path

import pytest
import torch

from dmt_ds.downstream.shared_batch_norm import SharedBatchNorm2d
from tests import processes
from tests.downstream.normed_maps import SIZE, normed
from tests.gpu.normed_ranks import KINDS

pytestmark = pytest.mark.gpu

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "bfloat16": {"rtol": 2e-2, "atol": 3e-2}}


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_batch_norm_of_two_ranks_on_cuda_is_that_of_one_process(cuda, tmp_path: Path, backend: str) -> None:
    if backend == "nccl":
        if len(subprocess.check_output(["nvidia-smi", "-L"]).splitlines()) < 2:
            pytest.skip("NCCL wants a GPU a rank: here is one")
        cuda = {**cuda, "CUDA_VISIBLE_DEVICES": "0,1"}
    processes.run(["-m", "tests.gpu.normed_ranks", str(tmp_path), backend], processes=2, **cuda)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind, dtype in KINDS.items():
        alone, both = normed(SharedBatchNorm2d(5).to(dtype), slice(0, SIZE)), [found[kind] for found in ranks]
        for name in ("out", "inputs", "judged"):
            together = torch.cat([own[name] for own in both])
            torch.testing.assert_close(together, alone[name], **TOLERANCE[kind])
        for name in ("weight", "bias"):  # each rank's own part; an engine adds them up
            torch.testing.assert_close(both[0][name] + both[1][name], alone[name], **TOLERANCE[kind])
        for own in both:
            assert own["mean"].dtype == own["variance"].dtype == torch.float32
            torch.testing.assert_close(own["mean"], alone["mean"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(own["variance"], alone["variance"], rtol=1e-4, atol=1e-5)
