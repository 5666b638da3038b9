"""Whether this machine's CPU multiplies bf16 by itself; where it does not, training in bf16 is slow there."""

from pathlib import Path

from dmt_ds.config.deepspeed import find_ds_config, precision, read_ds_config

CPUINFO = Path("/proc/cpuinfo")
_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86 with tiles, Arm


def has_bf16_instructions(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the CPU multiplies in bf16, by the flags that Linux shows; True where it shows none."""
    if not cpuinfo.is_file():
        return True
    lines = cpuinfo.read_text().splitlines()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), None)
    return flags is None or bool(_FLAGS & set(flags.partition(":")[2].split()))


def advice(student_json: str, teachers_json: str | None, cpuinfo: Path = CPUINFO) -> str | None:
    """What to set so that a run on this CPU is not slow for want of bf16 instructions; None: nothing.

    Args:
        student_json: `train.deepspeed`.
        teachers_json: `teachers.deepspeed`; None where there are no teachers.
    """
    in_use = {"train.deepspeed=student_zero2_fp32": student_json}
    if teachers_json is not None:
        in_use["teachers.deepspeed=teacher_zero3_inference_fp32"] = teachers_json
    remedies = [remedy for remedy, name in in_use.items() if precision(read_ds_config(find_ds_config(name))) == "bf16"]
    if not remedies or has_bf16_instructions(cpuinfo):
        return None
    return f"this CPU has no bf16 instructions and is several times slower in bf16: set {' '.join(remedies)}"
