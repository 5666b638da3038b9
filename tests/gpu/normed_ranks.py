"""A rank that normalises its share of the images on a GPU, for `test_two_ranks`: torchrun ... FOLDER BACKEND."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as torch_dist

from dmt_ds.downstream.shared_batch_norm import SharedBatchNorm2d
from tests.downstream.normed_maps import SIZE, normed

SHARES = [slice(0, 4), slice(4, SIZE)]
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(folder: Path, backend: str) -> None:
    """With gloo both ranks are on the first GPU, as NCCL does not let them be."""
    rank = int(os.environ["RANK"])
    device = torch.device("cuda", rank if backend == "nccl" else 0)
    torch.cuda.set_device(device)
    torch_dist.init_process_group(backend)
    found = {}
    for kind, dtype in KINDS.items():
        values = normed(SharedBatchNorm2d(5).to(device, dtype), SHARES[rank])
        found[kind] = {name: value.cpu() for name, value in values.items()}
    torch.save(found, folder / f"{rank}.pt")
    torch_dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
