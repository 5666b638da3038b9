"""The teachers' pass of a step, from bytes to the sum of tokens: timm's ViTs, ours, and ours through torch.compile.

    python benchmarks/bench_teachers.py                         # 4 images in float32 on a CPU, 256 in bf16 on a GPU
    python benchmarks/bench_teachers.py --teacher vit_tiny --batch 2 --image-size 64 # to see it run

`host` is how long the host takes to queue a pass on an idle device; where it is near the whole time, the device waits
for launches. Compiled, with or without CUDA graphs, is what teachers get that are no plain ViTs in bf16. Sums are held
against timm's before any timing; a way that fails, or has another sum, is a note in place of times.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import harness
import torch
from harness import Report, Spread
from ours import as_timm_has_it, flops_an_image, local_teachers, make_teachers, our_config
from torch import Tensor

from dmt_ds.commands.training.compiling import compiles
from dmt_ds.commands.training.teacher_engines import load_teachers, start_teachers
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.config.teachers import TeacherConfig
from dmt_ds.distill.fusion import FUSED, TokenFusion
from dmt_ds.engine.deepspeed import ds_engine

Teach = Callable[[Tensor], Tensor]


def ours(options: argparse.Namespace, models: dict[str, TeacherConfig], device: torch.device) -> Teach:
    """As `pretrain` has it."""
    config = our_config(options, models, compiled=False)
    loaded = load_teachers(config.teachers, options.image_size)
    return fused(start_teachers(loaded, config.teachers, device, options.batch).forwards)


def compiled(
    options: argparse.Namespace, models: dict[str, TeacherConfig], device: torch.device, *, as_graphs: bool
) -> Teach:
    """Our teachers' own forward through the compiler, perhaps with each one's kernels recorded once and replayed."""
    config = our_config(options, models, compiled=False)
    loaded = load_teachers(config.teachers, options.image_size)
    start_teachers(loaded, config.teachers, device, options.batch)
    settings = {"triton.cudagraphs": as_graphs}
    teach = fused({name: torch.compile(model.forward, options=settings) for name, model in loaded.items()})

    def begun(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # what the pass before gave may be overwritten
        return teach(images)

    return begun


def fused(forwards: Mapping[str, Teach]) -> Teach:
    fusion = TokenFusion("sum", dict.fromkeys(forwards, 1.0), class_token={})
    return lambda images: fusion((name, forward(images)) for name, forward in forwards.items())[FUSED]


def as_timm_does(options: argparse.Namespace, models: dict[str, TeacherConfig], device: torch.device) -> Teach:
    """As plain PyTorch (P1) has it."""
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    vits = [
        as_timm_has_it(vit).to(device, dtype) for vit in local_teachers(our_config(options, models, compiled=False))
    ]
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def teach(images: Tensor) -> Tensor:
        pixels = ((images.float() / 255 - mean) / std).to(dtype)
        target = vits[0].forward_features(pixels).float()
        for vit in vits[1:]:
            target += vit.forward_features(pixels)
        return target

    return teach


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = harness.parser(__doc__, rounds=9 if on_gpu else 5, steps=10 if on_gpu else 1)
    parser.add_argument("--teacher", default="vit_base")
    parser.add_argument("--teachers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256 if on_gpu else 4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=on_gpu)
    options = parser.parse_args()
    options.student = "vit_tiny"  # of the config; none is built
    device = ds_engine.start(600)
    harness.start(options)
    images = torch.randint(0, 256, (options.batch, 3, options.image_size, options.image_size), dtype=torch.uint8)
    images = images.to(device)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        models = make_teachers(Path(folder), options.teacher, options.teachers, options.image_size)
        timm = as_timm_does(options, models, device)
        others = {"ours": lambda: ours(options, models, device)}
        if compiles(True, "teachers", device):
            for name, graphs in (("compiled", False), ("compiled, as CUDA graphs", True)):
                others[name] = lambda graphs=graphs: compiled(options, models, device, as_graphs=graphs)  # type: ignore[misc]
        sides, errors, left_out = prepare(timm, others, images, 3e-2 if options.bf16 else 1e-4)
        acts = {name: lambda teach=teach: teach(images) for name, teach in sides.items()}
        with harness.turn():
            times = harness.alternate(acts, options.rounds, options.steps, device)
            hosts = {
                name: [harness.host_seconds(act, device) for _ in range(options.rounds)] for name, act in acts.items()
            }
            rate = harness.dense_rate(device, bf16=options.bf16)
    report = make_report(options, device, times, hosts, errors, rate)
    report.notes += left_out
    report.publish(options)
    ds_engine.stop()


def prepare(
    timm: Teach, others: Mapping[str, Callable[[], Teach]], images: Tensor, tolerance: float
) -> tuple[dict[str, Teach], dict[str, float], list[str]]:
    """Sides that give timm's sum, each one's relative distance from it, and a line for each that does not.

    Some way of compiling may fail on a device where it has not run before; the others are worth timing all the same.
    """
    sides, errors, left_out = {"timm": timm}, {"timm": 0.0}, []
    wanted = timm(images)
    for name, make in others.items():
        try:
            teach = make()
            for _ in range(3):  # CUDA graphs are recorded on the way
                found = teach(images)
            error = ((found - wanted).norm() / wanted.norm()).item()
            reason = "" if error <= tolerance else f"its sum of tokens differs from timm's by {error:.1e}"
        except Exception as failure:
            reason = " ".join(f"{type(failure).__name__}: {failure}".split())[:300]
        if reason:
            left_out.append(f"{name}: not timed: {reason}")
            print(left_out[-1], flush=True)
        else:
            sides[name], errors[name] = teach, error
    return sides, errors, left_out


def make_report(
    options: argparse.Namespace,
    device: torch.device,
    times: dict[str, list[float]],
    hosts: dict[str, list[float]],
    errors: dict[str, float],
    rate: float,
) -> Report:
    names = ("teacher", "teachers", "batch", "image_size", "bf16", "rounds", "steps")
    setting = {name: getattr(options, name) for name in names}
    report = Report(f"teachers_{harness.device_slug(device)}", "The teachers' pass", setting)
    flops = flops_an_image(options)["teachers"] * options.batch
    for name, seconds in times.items():
        ratio = harness.ratios(times["timm"], seconds)
        report.rows.append(
            {
                "": name,
                "ms a pass": Spread.of(seconds).text(1e3, 1),
                "host, ms": Spread.of(hosts[name]).text(1e3, 1),
                "times faster than timm": "1" if name == "timm" else ratio.text(),
                "seen": "" if name == "timm" else harness.verdict(ratio),
                "FLOP/s of a matrix product's": f"{100 * flops / Spread.of(seconds).median / rate:.0f} %",
                "error": f"{errors[name]:.0e}",
            }
        )
        report.metrics[f"{name.replace(',', '').replace(' ', '_')}/ms"] = 1e3 * Spread.of(seconds).median
    clock = "CPU seconds" if device.type == "cpu" else "wall seconds until the device is done"
    report.notes = [f"Times are {clock}; a matrix product runs at {rate / 1e12:.2f} TFLOP/s here."]
    report.raw = {"seconds": times, "host_seconds": hosts, "errors": errors, "rate": rate}
    return report


if __name__ == "__main__":
    main()
