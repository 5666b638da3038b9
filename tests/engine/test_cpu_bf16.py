"""A CPU without bf16 instructions is recognised, and only then is another JSON advised."""

from pathlib import Path

import pytest

from dmt_ds.engine.cpu_bf16 import advice, has_bf16_instructions

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
    both = advice(STUDENT, TEACHERS, old)
    assert both and "train.deepspeed=student_zero2_fp32 teachers.deepspeed=teacher_zero3_inference_fp32" in both
    alone = advice("student_zero2_fp32", TEACHERS, old)
    assert alone and "train.deepspeed" not in alone and "teachers.deepspeed=" in alone
    no_teachers = advice(STUDENT, None, old)
    assert no_teachers and "teachers" not in no_teachers
    assert advice("student_zero2_fp32", "teacher_zero3_inference_fp32", old) is None
    assert advice(STUDENT, TEACHERS, new) is None
