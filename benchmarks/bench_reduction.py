"""What averaging a student's gradients over ranks costs an update, beside DeepSpeed's own two ways.

    torchrun --nproc-per-node 2 benchmarks/bench_reduction.py                              # ViT-S, batch 2, gloo
    torchrun --nproc-per-node 8 benchmarks/bench_reduction.py --arch vit_base --batch 128  # on GPUs
    ip netns exec slow torchrun ... --link "3 Gbit/s"     # where a queue of `tc` makes the loopback device that slow

ZeRO-2 in bf16 with float32 sums. Weights after an update are held against each other before any timing. Rounds
alternate; each starts at a barrier and counts for the slowest rank. Medians and ranges are printed, not asserted.
"""

import argparse
from collections.abc import Callable, Mapping

import harness
import torch
from harness import Report, Spread
from torch import Tensor

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.config.schema import StudentConfig
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.deepspeed.ds_engine import StudentEngine
from dmt_ds.models.vit import build_vit

Zero = Mapping[str, object]
PEERS: dict[str, Zero] = {
    "DeepSpeed": {},
    "DeepSpeed, overlap_comm": {"overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": 50_000_000},
}
"""How their `zero_optimization` differs from `student_zero2_bf16.json`."""


def build(options: argparse.Namespace, device: torch.device, changes: Zero) -> StudentEngine:
    """A student with the same weights on all sides."""
    torch.manual_seed(0)
    vit = build_vit(StudentConfig(arch=options.arch, drop_path=0.0), options.image_size).to(device)
    batch = plan_batch(options.batch * dist.world_size(), options.batch, dist.world_size())
    config = resolve_student(find_ds_config("student_zero2_bf16"), batch, 0.0)
    config["zero_optimization"] |= changes
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW([{"params": list(vit.parameters())}], lr=1e-4, fused=fused)
    return ds_engine.build_student(vit, optimizer, lambda step: 1.0, config)


def build_peer(options: argparse.Namespace, device: torch.device, changes: Zero) -> StudentEngine:
    """DeepSpeed as it comes."""
    ours = ds_engine.overlap_reduction
    ds_engine.overlap_reduction = lambda engine: None
    try:
        return build(options, device, changes)
    finally:
        ds_engine.overlap_reduction = ours


def update_of(engine: StudentEngine, images: Tensor) -> Callable[[], None]:
    def update() -> None:
        engine.backward(engine(images).float().square().mean())
        engine.step()

    return update


def difference(engine: StudentEngine, other: StudentEngine) -> float:
    """Largest difference of two engines' float32 weights."""
    found, wanted = engine.trained_state(), other.trained_state()
    return max((found[name] - wanted[name]).abs().max().item() for name in wanted)


def main() -> None:
    parser = harness.parser(__doc__, rounds=9, steps=1)
    parser.add_argument("--arch", default="vit_small")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--link", default="as it is", help="what ranks are connected by, for the table")
    options = parser.parse_args()
    device = ds_engine.start(600)
    harness.start(options)
    if dist.world_size() == 1:
        raise SystemExit("one rank has nobody to average with: start it by torchrun --nproc-per-node 2")
    engines = {name: build_peer(options, device, changes) for name, changes in PEERS.items()}
    engines["dmt_ds"] = build(options, device, {})
    generator = torch.Generator().manual_seed(dist.rank())
    size = options.image_size
    images = torch.randn(options.batch, 3, size, size, generator=generator).to(device, torch.bfloat16)
    updates = {name: update_of(engine, images) for name, engine in engines.items()}
    for update in updates.values():
        update()
    apart = max(difference(engines["dmt_ds"], engines[name]) for name in PEERS)
    if apart > 1e-6:  # an update moves a weight by 1e-4
        raise SystemExit(f"after an update weights differ by {apart:.1e}")
    times: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(options.rounds):
        for name, update in updates.items():
            times[name].append(harness.seconds_of_slowest(update, device))
    names = ("arch", "batch", "image_size", "link", "rounds")
    setting = {"ranks": dist.world_size(), **{name: getattr(options, name) for name in names}}
    report = Report(f"reduction_{options.arch}_{harness.device_slug(device)}", "Gradients averaged over ranks", setting)
    for name, taken in times.items():
        faster = harness.ratios(times["DeepSpeed"], taken)
        row = {"": name, "ms an update": Spread.of(taken).text(1e3, 0), "times as fast as DeepSpeed": faster.text()}
        report.rows.append({**row, "so it is": harness.verdict(faster) if name != "DeepSpeed" else ""})
        report.metrics[f"{name}/ratio".replace(", ", "_").lower()] = faster.median
    report.notes = [f"Wall seconds of the slowest rank. Weights after an update differ by {apart:.0e} at most."]
    report.raw = {"seconds": times, "difference_of_weights": apart}
    if dist.is_main():
        report.publish(options)
    ds_engine.stop()


if __name__ == "__main__":
    main()
