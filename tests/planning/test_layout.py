"""What a recipe has beside ViTs, against the student that it builds."""

import pytest
import torch

from dmt_ds.config.methods import DistillConfig
from dmt_ds.config.schema import StudentConfig
from dmt_ds.models.student import Student
from dmt_ds.models.vit import build_vit
from dmt_ds.planning.layout import Layout, adapter_sizes, student_size, target_widths
from dmt_ds.planning.vit_cost import VitSize

BASE, SMALL = VitSize(768, 12, 16, 224), VitSize(384, 12, 16, 224)
SUM, APART = {"a": BASE, "b": BASE}, {"a": BASE, "b": SMALL}


@pytest.mark.parametrize(
    ("arch", "adapter", "fusion", "teachers", "targets"),
    [
        ("vit_small", "auto", "sum", SUM, (768,)),
        ("vit_base", "auto", "sum", SUM, (768,)),
        ("vit_base", "linear", "sum", SUM, (768,)),
        ("vit_base", "identity", "sum", SUM, (768,)),
        ("vit_tiny", "mlp", "sum", SUM, (768,)),
        ("vit_base", "ln_linear", "concat", APART, (768, 384)),
        ("vit_tiny", "auto", "concat", APART, (768, 384)),
        ("vit_base", "auto", "concat", APART, (768, 384)),
        ("vit_base", "identity", "concat", SUM, (768, 768)),
    ],
)
def test_adapters_and_targets_are_those_of_the_student_that_is_built(
    arch: str, adapter: str, fusion: str, teachers: dict[str, VitSize], targets: tuple[int, ...]
) -> None:
    section = StudentConfig(arch=arch, adapter=adapter, patch_size=8)
    size = student_size(section, 96)
    widths = target_widths(DistillConfig(fusion=fusion), teachers)
    assert widths == targets
    with torch.device("meta"):
        student = Student(build_vit(section, 96), {str(n): width for n, width in enumerate(targets)}, adapter)
        tokens = student(torch.empty(1, 3, 96, 96), torch.empty(1, dtype=torch.int64))
    planned = Layout(teachers, size, widths, adapter_sizes(size, section, widths), 2, {}, False, 1)
    assert planned.trained_parameters == sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert planned.target_numbers == sum(own.numel() for own in tokens.values())
