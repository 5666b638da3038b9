"""What cutting a frozen teacher over ranks (ZeRO-3) costs its forward, beside whole copies in the same processes.

    torchrun --nproc-per-node 2 benchmarks/bench_sharding.py                      # ViT-B in float32, batch 8, gloo
    torchrun --nproc-per-node 8 benchmarks/bench_sharding.py --batch 256 --bf16 --rounds 20   # on GPUs

Tokens are held against each other before any timing. Rounds alternate; each starts at a barrier and counts for the
slowest rank. Medians and ranges are printed, nothing is asserted.
"""

import argparse
from collections.abc import Callable

import harness
import torch
from harness import Report, Spread
from torch import Tensor

from dmt_ds.commands.training.teacher_engines import start_teachers
from dmt_ds.config.schema import StudentConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.config.teachers import TeacherConfig, TeachersConfig
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine, ds_teachers
from dmt_ds.models.encoders import EncoderRecord, FrozenEncoder
from dmt_ds.models.vit import build_vit, shape_of


def make_teacher(arch: str, image_size: int) -> FrozenEncoder:
    """Random weights, the same on all ranks: time does not depend on their values."""
    torch.manual_seed(0)
    vit = build_vit(StudentConfig(arch=arch, drop_path=0.0), image_size)
    return FrozenEncoder(vit, EncoderRecord("random", "none", shape_of(vit), IMAGENET_MEAN, IMAGENET_STD))


def started(
    model: FrozenEncoder, sharding: str, options: argparse.Namespace, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """As `dmt-ds pretrain` makes it ready."""
    section = TeachersConfig(
        models={"random": TeacherConfig(source="random")},
        sharding=sharding,
        shard_over="world",
        deepspeed="teacher_zero3_inference" if options.bf16 else "teacher_zero3_inference_fp32",
        compile=options.compile,
    )
    return start_teachers({"random": model}, section, device, options.batch).forwards["random"]


def main() -> None:
    parser = harness.parser(__doc__, rounds=9, steps=1)
    parser.add_argument("--arch", default="vit_base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--bf16", action="store_true", help="weights in bf16; slow on a CPU without such instructions")
    parser.add_argument("--compile", action="store_true", help="plain ViTs in bf16 on CUDA have nothing to compile")
    options = parser.parse_args()
    device = ds_engine.start(600)
    harness.start(options)
    if dist.world_size() == 1:
        raise SystemExit("one rank has nothing to cut: start it by torchrun --nproc-per-node 2")
    cut_model, whole_model = (make_teacher(options.arch, options.image_size) for _ in range(2))
    cut, whole = started(cut_model, "zero3", options, device), started(whole_model, "replicate", options, device)
    held, full = ds_teachers.held_bytes(cut_model)
    images = torch.randint(0, 256, (options.batch, 3, options.image_size, options.image_size), dtype=torch.uint8)
    images = images.to(device)
    with torch.no_grad():
        for _ in range(3):  # ZeRO-3 learns the order of the blocks in the first two
            found, wanted = cut(images), whole(images)
        difference = ((found - wanted).norm() / wanted.norm()).item()
        if difference > (3e-2 if options.bf16 else 1e-4):
            raise SystemExit(f"the cut teacher's tokens differ from the whole one's by {difference:.1e}")
        times: dict[str, list[float]] = {"replicated": [], "zero3": []}
        for _ in range(options.rounds):
            times["replicated"].append(harness.seconds_of_slowest(lambda: whole(images), device))
            times["zero3"].append(harness.seconds_of_slowest(lambda: cut(images), device))
    cost = harness.ratios(times["zero3"], times["replicated"])
    names = ("arch", "batch", "image_size", "bf16", "compile", "rounds")
    setting = {"ranks": dist.world_size(), **{name: getattr(options, name) for name in names}}
    report = Report(f"sharding_{options.arch}_{harness.device_slug(device)}", "A teacher cut over ranks", setting)
    for name, share in (("replicated", 1.0), ("zero3", held / full)):
        row = {"": name, "s a forward": Spread.of(times[name]).text(), "bytes held a rank": f"{100 * share:.1f} %"}
        report.rows.append({**row, "times as long": cost.text() if name == "zero3" else "1"})
    report.notes = [f"Wall seconds of the slowest rank. Tokens differ by {difference:.0e} (relative)."]
    report.raw = {"seconds": times, "difference_of_tokens": difference, "held_bytes_share": held / full}
    report.metrics = {"ratio": cost.median}
    if dist.is_main():
        report.publish(options)
    ds_engine.stop()


if __name__ == "__main__":
    main()
