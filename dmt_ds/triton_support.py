"""Whether Triton can compile kernels on this machine; knows no kernel."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

_OLDEST_GPU = (8, 0)


def obstacle_to_triton(device: torch.device) -> str | None:
    """Why Triton's kernels can't run on a device, in a few words; None where they can.

    For each kernel it compiles a stub in C on the machine that runs it, so that nodes without a compiler go without.
    """
    if device.type != "cuda":
        return f"the device is {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < _OLDEST_GPU:
        return (
            f"triton needs a GPU of compute capability 8.0 (Ampere) or newer, not {torch.cuda.get_device_name(device)}"
        )
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler, and there is none (gcc, clang, or its path as CC)"
    headers = Path(sysconfig.get_config_var("INCLUDEPY") or "")
    if not (headers / "Python.h").is_file():
        return f"triton needs Python's headers, and there are none in {headers}"
    return None
