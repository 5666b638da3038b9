"""Whether this machine multiplies in bf16 by itself; where it does not, training in bf16 is several times slower."""

from pathlib import Path

import torch

from dmt_ds.config.deepspeed import named_ds_config, precision

CPUINFO = Path("/proc/cpuinfo")
_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86 with tiles, Arm


def has_bf16_instructions(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the CPU multiplies in bf16, by the flags that Linux shows; True where it shows none."""
    if not cpuinfo.is_file():
        return True
    lines = cpuinfo.read_text().splitlines()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), None)
    return flags is None or bool(_FLAGS & set(flags.partition(":")[2].split()))


def device_without_bf16(device: torch.device, cpuinfo: Path = CPUINFO) -> str | None:
    """What the device is called, where it has no bf16 instructions; None where it has."""
    if device.type == "cpu":
        return None if has_bf16_instructions(cpuinfo) else "this CPU"
    # By default torch also counts GPUs that emulate bf16, which all do.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    return torch.cuda.get_device_name(device)


def advice(device: torch.device, student_json: str, teachers_json: str | None, cpuinfo: Path = CPUINFO) -> str | None:
    """What to set so that a run is not slowed down by bf16 on this device; None: nothing.

    Args:
        student_json: `train.deepspeed`.
        teachers_json: `teachers.deepspeed`; None where there are no teachers.
    """
    in_use = {"train.deepspeed=student_zero2_fp32": student_json}
    if teachers_json is not None:
        in_use["teachers.deepspeed=teacher_zero3_inference_fp32"] = teachers_json
    remedies = [remedy for remedy, name in in_use.items() if precision(named_ds_config(name)) == "bf16"]
    slow = device_without_bf16(device, cpuinfo) if remedies else None
    if slow is None:
        return None
    return f"{slow} has no bf16 instructions and is several times slower in bf16: set {' '.join(remedies)}"
