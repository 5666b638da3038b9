"""Which device a rank takes, and GPUs that torch does not see; knows no process group."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from dmt_ds.errors import LaunchError
from dmt_ds.wording import first_line

DRIVER = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver lists the GPUs of a machine."""


def local_device(environment: dict[str, str]) -> torch.device:
    """This rank's device. DeepSpeed takes LOCAL_RANK for its index, so that is set to fit.

    Raises:
        LaunchError: there are more ranks on this node than GPUs, or a GPU that torch does not see or can't start.
    """
    if not torch.cuda.is_available():
        if unseen := unseen_gpus(os.environ):
            raise LaunchError(unseen)
        return torch.device("cpu")
    local_rank, num_gpus = int(environment["LOCAL_RANK"]), torch.cuda.device_count()
    if num_gpus == 1 and "SLURM_STEP_GPUS" in os.environ:
        # srun showed this task one GPU only, which has index 0 whatever the local rank is.
        local_rank = 0
        os.environ["LOCAL_RANK"] = "0"
    if local_rank >= num_gpus:
        raise LaunchError(
            f"rank {environment['RANK']}: local rank {local_rank}, but this node has {num_gpus} GPU"
            f"{'s' if num_gpus > 1 else ''}: start one process per GPU, or hide them with CUDA_VISIBLE_DEVICES="
        )
    device = torch.device("cuda", local_rank)
    try:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except RuntimeError as error:  # another process fills it, or has it to itself
        raise LaunchError(
            f"rank {environment['RANK']}: GPU {local_rank} of this node does not start: {first_line(error)}; "
            "nvidia-smi shows who uses it"
        ) from error
    return device


def name_of(device: torch.device) -> str:
    """What people call it: `NVIDIA H100 80GB HBM3`, or `the CPU`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def unseen_gpus(environ: Mapping[str, str]) -> str | None:
    """The error message if SLURM gave this job GPUs that torch can't see: it would train on the CPU at a GPU's price.

    None where there are none, where torch sees them, or where somebody hid them by an empty CUDA_VISIBLE_DEVICES.
    """
    on_node, of_step = environ.get("SLURM_GPUS_ON_NODE", ""), environ.get("SLURM_STEP_GPUS", "")
    count = int(on_node) if on_node.isdigit() else len(of_step.split(",")) if of_step else 0
    if count == 0 or _are_seen_or_hidden(environ):
        return None
    return (
        f"{count} GPU{'s are' if count > 1 else ' is'} allocated but torch sees none: driver or wheel ({_wheel()}); "
        "compare with nvidia-smi on this node, or request none (--gpus-per-node=0) to use the CPU"
    )


def unused_gpus(environ: Mapping[str, str], driver: Path = DRIVER) -> str | None:
    """The same of a machine whose driver has GPUs, outside of SLURM: the CPU may be what is wanted there."""
    if "SLURM_JOB_ID" in environ or _are_seen_or_hidden(environ) or not driver.is_dir() or not any(driver.iterdir()):
        return None
    return f"this machine has GPUs but torch sees none, so the CPU is used: driver too old for the wheel? {_wheel()}"


def _are_seen_or_hidden(environ: Mapping[str, str]) -> bool:
    return torch.cuda.is_available() or environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1")


def _wheel() -> str:
    cuda = torch.version.cuda
    return f"torch {torch.__version__} is built {f'for CUDA {cuda}' if cuda else 'without CUDA'}"
