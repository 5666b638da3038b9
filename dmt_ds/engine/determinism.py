"""The same bits each time from the same run on the same machines; knows no model.

What is random belongs to images anyway (`dmt_ds.sample_rng`); this is about sums whose order a GPU may choose.
"""

import os

import torch


def switch_on() -> None:
    """Make this process deterministic; call before CUDA is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
