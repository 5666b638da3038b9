"""What cutting a frozen teacher over ranks (ZeRO-3) costs its forward, beside whole copies in the same processes.

    torchrun --nproc-per-node 2 benchmarks/bench_sharding.py                      # ViT-B in float32, batch 8, gloo
    torchrun --nproc-per-node 8 benchmarks/bench_sharding.py --batch 256 --bf16 --rounds 20 --compile   # on GPUs

Tokens are held equal bit for bit before any timing. Rounds alternate; each starts at a barrier and counts for the
slowest rank. Medians and ranges are printed, nothing is asserted.
"""

import time
from collections.abc import Callable

import harness
import torch
from harness import Report, Spread
from torch import Tensor

from dmt_ds.config.deepspeed import find_ds_config, resolve_teacher
from dmt_ds.config.schema import StudentConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.engine import dist, ds_engine, ds_teachers
from dmt_ds.models.teachers import TeacherModel, TeacherRecord
from dmt_ds.models.vit import build_vit, describe


def make_teacher(arch: str, image_size: int) -> TeacherModel:
    """Random weights, the same on all ranks: time does not depend on their values."""
    torch.manual_seed(0)
    vit = build_vit(StudentConfig(arch=arch, drop_path=0.0), image_size)
    return TeacherModel(vit, TeacherRecord("random", "none", describe(vit), IMAGENET_MEAN, IMAGENET_STD))


def seconds(forward: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Of one forward, from a barrier to the end of the slowest rank."""
    dist.barrier()
    start = time.perf_counter()
    forward(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return max(dist.gather_objects(time.perf_counter() - start))


def main() -> None:
    parser = harness.parser(__doc__, rounds=9, steps=1)
    parser.add_argument("--arch", default="vit_base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--bf16", action="store_true", help="weights in bf16; slow on a CPU without such instructions")
    parser.add_argument("--compile", action="store_true", help="the whole one, and the cut one inside its blocks")
    options = parser.parse_args()
    device = ds_engine.start(600)
    harness.start(options)
    name = "teacher_zero3_inference" if options.bf16 else "teacher_zero3_inference_fp32"
    backend = "inductor" if options.compile else None
    if dist.world_size() == 1:
        raise SystemExit("one rank has nothing to cut: start it by torchrun --nproc-per-node 2")
    config = resolve_teacher(
        find_ds_config(name), make_teacher(options.arch, options.image_size).record.shape.embed_dim
    )
    cut_model = make_teacher(options.arch, options.image_size)
    cut = ds_teachers.build_teacher(cut_model, config, device, shard_over="world", compile_backend=backend)
    held, full = ds_teachers.held_bytes(cut_model)
    whole = ds_teachers.replicate_teacher(
        make_teacher(options.arch, options.image_size), config, device, compile_backend=backend
    )
    images = torch.randint(0, 256, (options.batch, 3, options.image_size, options.image_size), dtype=torch.uint8)
    images = images.to(device)
    with torch.no_grad():
        for _ in range(3):  # ZeRO-3 learns the order of the blocks in the first two
            difference = (cut(images) - whole(images)).abs().max().item()
        if difference and device.type == "cpu":
            raise SystemExit(f"the cut teacher's tokens differ from the whole one's by {difference}")
        times: dict[str, list[float]] = {"replicated": [], "zero3": []}
        for _ in range(options.rounds):
            times["replicated"].append(seconds(whole, images))
            times["zero3"].append(seconds(cut, images))
    cost = harness.ratios(times["zero3"], times["replicated"])
    names = ("arch", "batch", "image_size", "bf16", "compile", "rounds")
    setting = {"ranks": dist.world_size(), **{name: getattr(options, name) for name in names}}
    report = Report(f"sharding_{options.arch}_{harness.device_slug(device)}", "A teacher cut over ranks", setting)
    for name, share in (("replicated", 1.0), ("zero3", held / full)):
        row = {"": name, "s a forward": Spread.of(times[name]).text(), "bytes held a rank": f"{100 * share:.1f} %"}
        report.rows.append({**row, "times as long": cost.text() if name == "zero3" else "1"})
    report.notes = [f"Wall seconds of the slowest rank. Tokens differ by {difference} at most."]
    report.raw = {"seconds": times, "largest_difference_of_tokens": difference, "held_bytes_share": held / full}
    report.metrics = {"ratio": cost.median}
    if dist.is_main():
        report.publish(options)
    ds_engine.stop()


if __name__ == "__main__":
    main()
