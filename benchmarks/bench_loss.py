"""Both losses, forward and backward: as written, the same compiled, and the fused kernels; time, memory, accuracy.

    python benchmarks/bench_loss.py                              # 32 images on a CPU, 256 on a GPU
    python benchmarks/bench_loss.py --batch 8 --channels 384 --direction teacher_student

Student tokens in each of two types, target in float32 as fusion gives it. Before any timing, values and gradients are
compared with float64. On a CPU keep the batch at 32 or less: above, eager tensors pass glibc's limit of 32 MiB, and
what is measured is page faults.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import harness
import torch
from harness import Report, Spread
from torch import Tensor

from dmt_ds.distill.choices import Direction
from dmt_ds.distill.dual_loss import dual_loss
from dmt_ds.distill.losses import spatial_fusion_loss, token_fusion_loss

Loss = Callable[[Tensor, Tensor], Tensor]
LARGEST_ERROR = {torch.float32: 1e-5, torch.bfloat16: 4e-3}


def losses(direction: Direction, device: torch.device, with_compile: bool) -> dict[str, Loss]:
    """Name -> TFD + SFD."""

    def eager(student: Tensor, fused: Tensor) -> Tensor:
        tfd = token_fusion_loss(student, fused, direction=direction)
        return tfd + spatial_fusion_loss(student, fused, direction=direction)

    def chunked(student: Tensor, fused: Tensor) -> Tensor:
        return dual_loss(student, fused, direction=direction, kernel="chunked").total

    def triton(student: Tensor, fused: Tensor) -> Tensor:
        return dual_loss(student, fused, direction=direction, kernel="triton").total

    found: dict[str, Loss] = {"eager": eager}
    if with_compile:
        found["torch.compile"] = torch.compile(eager)
    found |= {"triton": triton} if device.type == "cuda" else {"chunked": chunked}
    return found


def check(loss: Loss, student: Tensor, fused: Tensor, eager: Loss) -> tuple[float, float]:
    """Relative errors of value and gradient against float64; on the whole batch, as another one is compiled anew.

    Raises:
        SystemExit: they are too large to compare times.
    """
    some = student.detach().requires_grad_()
    exact = some.detach().double().requires_grad_()
    value, wanted = loss(some, fused), eager(exact, fused.double())
    slope, right = (torch.autograd.grad(v, x)[0].double() for v, x in ((value, some), (wanted, exact)))
    of_value, of_slope = abs(value.item() / wanted.item() - 1), ((slope - right).norm() / right.norm()).item()
    if of_value > 1e-5 or of_slope > LARGEST_ERROR[student.dtype]:
        raise SystemExit(f"{loss}: errors {of_value:.1e} and {of_slope:.1e} against float64: not the same loss")
    return of_value, of_slope


class Case(NamedTuple):
    """One direction with one type of the student's tokens: all sides, compiled and found right."""

    name: str
    sides: dict[str, Callable[[], None]]
    first_calls: dict[str, float]
    errors: dict[str, tuple[float, float]]
    elements: int


def prepare(dtype: torch.dtype, direction: Direction, options: argparse.Namespace, device: torch.device) -> Case:
    torch.manual_seed(0)
    shape = (options.batch, options.tokens, options.channels)
    student = (2 * torch.randn(shape, device=device)).to(dtype).requires_grad_()
    fused = 2 * torch.randn(shape, device=device)
    found = losses(direction, device, not options.no_compile)

    def act(loss: Loss) -> Callable[[], None]:
        def forward_backward() -> None:
            torch.autograd.grad(loss(student, fused), student)  # as in a model, where nothing keeps this gradient

        return forward_backward

    sides = {name: act(loss) for name, loss in found.items()}
    first_calls = {name: harness.first_call(side, device) for name, side in sides.items()}
    errors = {name: check(loss, student, fused, found["eager"]) for name, loss in found.items()}
    name = f"{direction}, {str(dtype).removeprefix('torch.')}"
    return Case(name, sides, first_calls, errors, student.numel())


def measure(report: Report, case: Case, options: argparse.Namespace, device: torch.device) -> None:
    """Add the rows of a case."""
    times = harness.alternate(case.sides, options.rounds, options.steps, device, of_device=True)
    memory = {name: harness.peak_bytes(side, device) for name, side in case.sides.items()}
    for name in case.sides:
        ratio = harness.ratios(times["eager"], times[name])
        report.rows.append(
            {
                "direction, student": case.name,
                "loss": name,
                "ms": Spread.of(times[name]).text(1e3),
                "times faster than eager": "1" if name == "eager" else ratio.text(),
                "seen": "" if name == "eager" else harness.verdict(ratio),
                "peak beyond inputs, bytes an element": f"{memory[name] / case.elements:.1f}",
                "of eager's": f"{memory[name] / memory['eager']:.2f}",
                "error of value, gradient": "{:.0e}, {:.0e}".format(*case.errors[name]),
                "first call, s": f"{case.first_calls[name]:.1f}",
            }
        )
        key = f"{case.name.replace(', ', '/')}/{name}"
        report.metrics |= {f"{key}/ms": 1e3 * Spread.of(times[name]).median, f"{key}/speedup": ratio.median}
        report.metrics[f"{key}/peak_mib"] = memory[name] / 2**20
    report.raw[case.name] = {"seconds": times, "peak_bytes": memory, "first_call_seconds": case.first_calls}


def main() -> None:
    parser = harness.parser(__doc__, rounds=9, steps=3)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--batch", type=int, default=256 if on_gpu else 32)
    parser.add_argument("--tokens", type=int, default=197)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--direction", choices=["student_teacher", "teacher_student", "both"], default="both")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    options = parser.parse_args()
    device = harness.start(options)
    directions = ["student_teacher", "teacher_student"] if options.direction == "both" else [options.direction]
    setting = {"batch": options.batch, "tokens": options.tokens, "channels": options.channels}
    setting |= {"rounds": options.rounds, "steps a round": options.steps}
    report = Report(f"loss_{harness.device_slug(device)}", "Both losses, forward and backward", setting)
    kinds = (torch.bfloat16, torch.float32)
    cases = [prepare(kind, direction, options, device) for direction in directions for kind in kinds]
    with harness.turn():
        for case in cases:
            measure(report, case, options, device)
    clock = "CPU seconds" if device.type == "cpu" else "seconds of the device, which the host is ahead of"
    report.notes.append(
        f"Times are {clock}, medians and ranges of the rounds; a compiled graph may come from its cache."
    )
    report.notes.append("The gradient itself, of the student's type, is among the bytes.")
    report.publish(options)


if __name__ == "__main__":
    main()
