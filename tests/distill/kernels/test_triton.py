"""The CUDA kernels by Triton's interpreter, which needs no GPU; and compiled for the cards that they are meant for."""

import importlib.util
import json

import pytest

from tests import processes

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# Shapes that fill no block: rows, channels of a column's program and of a row's step, less than one, one more, several.
# ViT-Tiny's own, and bfloat16, once in each direction: their numbers go through the same walks.
COMPARE = """
import json
from tests.distill.kernels.cases import *
facts = {"cases": all_compared([(2, 17, 192), (2, 65, 7), (1, 3, 130), (1, 16, 384)], ["float32"], "triton")}
facts["cases"] += all_compared([(2, 17, 130)], ["bfloat16"], "triton")
vit_tiny = random_tokens(0, 1, 197, 192), random_tokens(1, 1, 197, 192)
facts["cases"] += [["vit_tiny", "float32", way, *compare(*vit_tiny, "triton", way)] for way in DIRECTIONS]
facts["hard"] = {
    f"{name}, {direction}": max(compare(*tokens, "triton", direction))
    for name, tokens in hard_cases().items() for direction in DIRECTIONS
}
fused = random_tokens(0, 2, 17, 96)
student = fused.clone().requires_grad_()
same = dual_loss(student, fused, kernel="triton")
same.total.backward()
facts["equal"] = [same.tfd.item(), same.sfd.item(), student.grad.abs().max().item()]
with torch.no_grad():
    facts["unasked"] = (dual_loss(student + 1, fused, kernel="triton").total.item())
strided = random_tokens(3, 96, 17, 2).permute(2, 1, 0)
facts["strided"] = [max(compare(*pair, "triton", "student_teacher")) for pair in ((strided, fused), (fused, strided))]
facts["scaled"] = []
for dtype in (torch.float32, torch.bfloat16):
    halves = []
    for factor in (1.0, 0.3):
        tokens = random_tokens(0, 2, 17, 300, dtype=dtype).requires_grad_()
        (factor * dual_loss(tokens, random_tokens(1, 2, 17, 300), kernel="triton").total).backward()
        halves.append(tokens.grad.double())
    facts["scaled"].append(((halves[1] - 0.3 * halves[0]).norm() / halves[1].norm()).item())
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts() -> dict:
    """From a process of its own: the interpreter is chosen when triton is imported."""
    done = processes.run(["-c", COMPARE], TRITON_INTERPRET="1")
    return json.loads(done.stdout.splitlines()[-1])


def test_values_and_gradient_are_those_of_the_losses_as_written(facts: dict) -> None:
    assert len(facts["cases"]) == (4 + 1) * 2 * 2 + 2
    for *case, total, tfd, sfd, gradient in facts["cases"]:
        assert max(tfd, sfd, total) < 1e-5, case
        assert gradient < (1e-5 if "float32" in case else 4e-3), case


def test_extreme_tokens_give_what_float64_gives(facts: dict) -> None:
    assert len(facts["hard"]) == 16
    assert {case: error for case, error in facts["hard"].items() if not error < 2e-5} == {}


def test_equal_tokens_cost_nothing_and_pull_nowhere(facts: dict) -> None:
    assert facts["equal"] == pytest.approx([0, 0, 0], abs=1e-6)


def test_without_gradient_and_from_any_strides_the_numbers_are_the_same(facts: dict) -> None:
    assert facts["unasked"] == pytest.approx(0, abs=1e-6)  # a shift by one is none
    assert max(facts["strided"]) < 1e-5


def test_a_weighted_loss_has_a_weighted_gradient(facts: dict) -> None:
    float32, bfloat16 = facts["scaled"]
    assert float32 < 1e-6 and bfloat16 < 4e-3


COMPILE = """
import json, re, subprocess, sys, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dmt_ds.distill.kernels import dual_triton
cubin, tool = Path(sys.argv[1]), Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
kinds = {"num_rows": "i32", "num_channels": "i32", "first_row": "i32", "row_weight": "fp32", "column_weight": "fp32"}
kinds |= {"student": "*bf16", "gradient": "*bf16"}
made = []
kinds |= {"num_elements": "i32"}
scale = (dual_triton._scale, [dual_triton._SCALED_AT_ONCE], 4)
as_launched = (
    (dual_triton._columns, [dual_triton._ROWS, dual_triton._COLUMNS], dual_triton._COLUMN_WARPS),
    (dual_triton._rows, [dual_triton._ROWS, dual_triton._WIDTH, True], dual_triton._ROW_WARPS),
)
for kernel, own, num_warps in (*as_launched, scale):
    for student_first in (True, False):  # of the scaling: Hopper, and Ampere
        given = own if kernel is dual_triton._scale else [student_first, *own]
        constants = dict(zip(kernel.arg_names[-len(given):], given, strict=True))
        signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in kernel.arg_names}
        aligned = [name for name, kind in signature.items() if kind.startswith("*") or name == "num_channels"]
        attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}  # as torch's are
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        target, options = GPUTarget("cuda", 90 if student_first else 80, 32), {"num_warps": num_warps}
        cubin.write_bytes(triton.compile(source, target=target, options=options).asm["cubin"])
        usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True).stdout
        made.append({name: int(number) for name, number in re.findall("(REG|STACK):([0-9]+)", usage)})
print(json.dumps(made))
"""


def test_all_kernels_compile_for_ampere_and_hopper_and_spill_no_register(tmp_path) -> None:
    done = processes.run(["-c", COMPILE, str(tmp_path / "kernel.cubin")], TRITON_CACHE_DIR=str(tmp_path))
    made = json.loads(done.stdout.splitlines()[-1])
    assert len(made) == 6
    assert all(found["STACK"] == 0 and 0 < found["REG"] < 128 for found in made), made
