"""A device without bf16 instructions is recognised, and only then is another JSON advised."""

from pathlib import Path

import pytest
import torch

from dmt_ds.engine.slow_bf16 import advice, has_bf16_instructions

CPU = torch.device("cpu")
STUDENT, TEACHERS = "student_zero2_bf16", "teacher_zero3_inference"


def cpuinfo(folder: Path, flags: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: some\n{flags}\nprocessor\t: 1\n{flags}\n")
    return path


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t\t: fpu avx512f avx512vl avx512_vnni", False),
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_vnni", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd", False),
        ("Features\t: fp asimd bf16", True),
        ("cpu\t\t: POWER9", True),  # unknown: nothing to say
    ],
)
def test_the_kernel_lists_the_instructions(tmp_path, flags, has):
    assert has_bf16_instructions(cpuinfo(tmp_path, flags)) is has


def test_a_machine_that_lists_nothing_is_left_alone(tmp_path):
    assert has_bf16_instructions(tmp_path / "missing")


def test_the_advice_names_only_the_settings_that_are_in_bf16(tmp_path):
    old, new = cpuinfo(tmp_path, "flags: sse"), tmp_path / "missing"
    both = advice(CPU, STUDENT, TEACHERS, old)
    assert both and "train.deepspeed=student_zero2_fp32 teachers.deepspeed=teacher_zero3_inference_fp32" in both
    alone = advice(CPU, "student_zero2_fp32", TEACHERS, old)
    assert alone and "train.deepspeed" not in alone and "teachers.deepspeed=" in alone
    no_teachers = advice(CPU, STUDENT, None, old)
    assert no_teachers and "teachers" not in no_teachers
    assert advice(CPU, "student_zero2_fp32", "teacher_zero3_inference_fp32", old) is None
    assert advice(CPU, STUDENT, TEACHERS, new) is None


@pytest.mark.parametrize("has_instructions", [True, False])
def test_a_gpu_that_only_emulates_bf16_is_not_taken_for_one_that_has_it(monkeypatch, has_instructions):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_instructions
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    told = advice(torch.device("cuda", 0), STUDENT, TEACHERS)
    assert told is None if has_instructions else told and told.startswith("Tesla T4 has no bf16 instructions")
