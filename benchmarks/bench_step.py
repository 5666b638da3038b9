"""A whole training step, of an in-memory uint8 batch: this project's trainer beside four ways of doing without it.

    python benchmarks/bench_step.py                              # batch 4 in float32 on a CPU, 256 in bf16 on a GPU
    python benchmarks/bench_step.py --student vit_small --batch 128
    python benchmarks/bench_step.py --teacher vit_tiny --batch 2 --image-size 64      # to see it run

P1 is `peer_pytorch.py`, P2 the same compiled; `peer_tinymim_style.py`; `peer_deepspeed.py`; ours plain and, where
things are compiled, with `train.compile` and `teachers.compile`. All start from the same weights, without drop path and
jitter. Before any timing, first losses and gradients of the patch embedding are held against those of P1.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import harness
import torch
from harness import Report, Spread
from ours import Ours, as_timm_has_it, flops_an_image, local_teachers, make_teachers, our_config
from peer_deepspeed import DeepSpeedUser
from peer_pytorch import PlainPyTorch
from peer_tinymim_style import TinyMimStyle
from torch import Tensor, nn

from dmt_ds.commands.training.compiling import compiles
from dmt_ds.engine.deepspeed import ds_engine


class Side:
    """One way of training: its step, and the parameter by which its gradients are compared."""

    def __init__(self, step: Callable[[], Tensor | float], student: nn.Module) -> None:
        self.step = step
        self.gradient: Tensor | None = None
        self.hook = student.patch_embed.proj.weight.register_hook(self._note)  # type: ignore[union-attr]

    def _note(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach().float().cpu()


def build_sides(options: argparse.Namespace, folder: Path, device: torch.device, images: Tensor) -> dict[str, Side]:
    """All from one set of weights."""
    models = make_teachers(folder, options.teacher, options.teachers, options.image_size)
    plain = our_config(options, models, compiled=False)
    ours = Ours(plain, folder / "ours", device, images)
    student, adapter = as_timm_has_it(copy.deepcopy(ours.student)), copy.deepcopy(ours.adapter)
    teachers = [as_timm_has_it(teacher) for teacher in local_teachers(plain)]

    def parts() -> tuple[list[nn.Module], nn.Module, nn.Module]:
        shared = [copy.deepcopy(teacher) for teacher in teachers] if device.type == "cuda" else teachers
        return shared, copy.deepcopy(student), copy.deepcopy(adapter)

    def of_peer(peer: PlainPyTorch | DeepSpeedUser, module: nn.Module) -> Side:
        return Side(lambda: peer.step(images), module)

    sides: dict[str, Side] = {}
    p1 = PlainPyTorch(*parts(), device, bf16=options.bf16)
    sides["P1 plain PyTorch"] = of_peer(p1, p1.model["student"])
    ours.start()
    sides["ours"] = Side(ours.step, ours.student)
    if options.compile:
        p2 = PlainPyTorch(*parts(), device, bf16=options.bf16, compiled=True)
        sides["P2 plain PyTorch, compiled"] = of_peer(p2, p2.model["student"])
    if options.compile and compiles(True, "ours", device):
        compiled = Ours(our_config(options, models, compiled=True), folder / "compiled", device, images)
        module = compiled.student
        compiled.start()
        sides["ours, compiled"] = Side(compiled.step, module)
    user = DeepSpeedUser(*parts(), device, bf16=options.bf16, batch=options.batch)
    sides["DeepSpeed by hand"] = of_peer(user, user.engine.module.student)
    own_teachers, *others = parts()
    style = TinyMimStyle(copy.deepcopy(own_teachers), *others, device, bf16=options.bf16)
    views = style.views(images)
    sides["TinyMIM-style"] = Side(lambda: style.step(views), style.model["student"])
    return sides


def check(sides: dict[str, Side], options: argparse.Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """The first step of each, with its wall time; then nobody's gradient is looked at any more.

    Raises:
        SystemExit: a loss or a gradient is another than P1's.
    """
    tolerances = (2e-2, 2e-1) if options.bf16 else (1e-4, 1e-3)  # of bf16, rounding through twelve blocks and back
    found: dict[str, dict[str, float]] = {}
    wanted: tuple[float, Tensor] | None = None
    for name, side in sides.items():
        begin = time.perf_counter()
        loss = float(side.step())
        harness.wait_for(device)
        first = time.perf_counter() - begin
        print(f"first step of {name}: {first:.1f} s", flush=True)
        side.hook.remove()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # for programs that are built beside this one
        assert side.gradient is not None, f"{name}: no gradient came by"
        wanted = wanted or (loss, side.gradient)
        of_loss = abs(loss / wanted[0] - 1)
        of_gradient = ((side.gradient - wanted[1]).norm() / wanted[1].norm()).item()
        if of_loss > tolerances[0] or of_gradient > tolerances[1]:
            raise SystemExit(f"{name}: loss {loss} and gradient differ from P1's by {of_loss:.1e}, {of_gradient:.1e}")
        found[name] = {"loss": loss, "loss_error": of_loss, "gradient_error": of_gradient, "first_step_seconds": first}
    return found


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = harness.parser(__doc__, rounds=9 if on_gpu else 5, steps=10 if on_gpu else 1)
    parser.add_argument("--teacher", default="vit_base")
    parser.add_argument("--teachers", type=int, default=3)
    parser.add_argument("--student", default="vit_tiny")
    parser.add_argument("--batch", type=int, default=256 if on_gpu else 4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=on_gpu)
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=on_gpu, help="P2, and on CUDA ours compiled"
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="images as this project's loader gives them, not in planes"
    )
    options = parser.parse_args()
    device = ds_engine.start(600)
    harness.start(options)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (options.batch, 3, options.image_size, options.image_size), dtype=torch.uint8)
    if options.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as name:
        sides = build_sides(options, Path(name), device, images.to(device))
        checked = check(sides, options, device)
        steps = {name: side.step for name, side in sides.items()}
        waits = {name: harness.waits(step, device) for name, step in steps.items()}
        flops = flops_an_image(options)
        with harness.turn():
            # Steps come in a row in training; the first after another side's finds its memory scattered.
            times = harness.alternate(steps, options.rounds, options.steps, device, before=steps)
            memory = {name: harness.peak_bytes(step, device) for name, step in steps.items()}
            rate = harness.dense_rate(device, bf16=options.bf16)
            hosts = {name: harness.host_seconds(step, device) for name, step in steps.items()}
            kernels = harness.kernel_seconds(steps[last_of_ours(steps)], device)
    report = make_report(options, device, times, checked, memory, flops, rate)
    if device.type == "cuda":
        report.notes += notes_of_cuda(waits, hosts, kernels)
        report.raw |= {"waits": waits, "host_seconds": hosts, "kernel_seconds": kernels}
    report.publish(options)
    ds_engine.stop()


def last_of_ours(sides: Mapping[str, object]) -> str:
    return [name for name in sides if name.startswith("ours")][-1]


def notes_of_cuda(waits: Mapping[str, int], hosts: Mapping[str, float], kernels: Mapping[str, float]) -> list[str]:
    longest = ", ".join(f"{1e3 * seconds:.1f} {name[:60]}" for name, seconds in list(kernels.items())[:8])
    return [
        f"The host waits for the device, times a step: {dict(waits)}.",
        f"The host queues a step in, ms: { {name: round(1e3 * seconds, 1) for name, seconds in hosts.items()} }.",
        f"Kernels take {1e3 * sum(kernels.values()):.1f} ms of a step of {last_of_ours(hosts)}: {longest}.",
    ]


def make_report(
    options: argparse.Namespace,
    device: torch.device,
    times: dict[str, list[float]],
    checked: dict[str, dict[str, float]],
    memory: dict[str, int],
    flops: dict[str, float],
    rate: float,
) -> Report:
    kind = "bf16" if options.bf16 else "float32"
    names = ("student", "teacher", "teachers", "batch", "image_size", "channels_last", "rounds", "steps")
    setting = {**{name: getattr(options, name) for name in names}, "precision": kind}
    slug = f"step_{options.student}_{harness.device_slug(device)}"
    report = Report(slug, f"Whole step, student {options.student}", setting)
    base = next(iter(times))
    for name, seconds in times.items():
        ratio = harness.ratios(times[base], seconds)
        used = sum(flops.values()) * options.batch / Spread.of(seconds).median / rate
        report.rows.append(
            {
                "": name,
                "ms a step": Spread.of(seconds).text(1e3, 1),
                "images/s": f"{options.batch / Spread.of(seconds).median:.1f}",
                "times faster than P1": "1" if name == base else ratio.text(),
                "seen": "" if name == base else harness.verdict(ratio),
                "model FLOP/s of a matrix product's": f"{100 * used:.0f} %",
                "peak beyond weights, MiB": f"{memory[name] / 2**20:.0f}",
                "first step, s": f"{checked[name]['first_step_seconds']:.1f}",
                "loss, gradient against P1": "{loss_error:.0e}, {gradient_error:.0e}".format(**checked[name]),
            }
        )
        key = name.replace(",", "").replace(" ", "_")
        report.metrics |= {f"{key}/ms": 1e3 * Spread.of(seconds).median, f"{key}/of_p1": ratio.median}
        report.metrics[f"{key}/mfu"] = used
    share = flops["teachers"] / sum(flops.values())
    clock = "CPU seconds" if device.type == "cpu" else "wall seconds"
    report.notes = [
        f"Times are {clock}; a matrix product runs at {rate / 1e12:.2f} TFLOP/s in {kind} here.",
        f"The teachers' forward is {100 * share:.0f} % of the FLOPs.",
    ]
    report.raw = {"seconds": times, "checked": checked, "peak_bytes": memory, "flops_an_image": flops, "rate": rate}
    return report


if __name__ == "__main__":
    main()
