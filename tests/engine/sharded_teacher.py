"""Run by test_ds_engine on every rank: facts about a ViT-B cut by ZeRO-3 beside a ZeRO-2 student, as JSON."""

import json
import sys

import torch
import torch.nn.functional as F

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student, resolve_teacher
from dmt_ds.config.schema import OptimConfig, StudentConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.engine import dist, ds_engine, ds_teachers
from dmt_ds.engine.optim import build_optimizer
from dmt_ds.models.teachers import TeacherModel, TeacherRecord
from dmt_ds.models.vit import build_vit, describe


def teacher() -> TeacherModel:
    torch.manual_seed(0)
    vit = build_vit(StudentConfig(arch="vit_base", drop_path=0.0), 224)
    return TeacherModel(vit, TeacherRecord("random", "none", describe(vit), IMAGENET_MEAN, IMAGENET_STD))


def main() -> None:
    torch.set_num_threads(1)
    device = ds_engine.start(120)
    linear_before = F.linear
    config = resolve_teacher(find_ds_config("teacher_zero3_inference"), 768)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    cut, whole = teacher(), teacher()
    engine = ds_teachers.build_teacher(cut, config, device, shard_over="world")
    whole = ds_teachers.replicate_teacher(whole, config, device)

    student = torch.nn.Linear(8, 8)
    batch = plan_batch(2 * dist.world_size(), 2, dist.world_size())
    student_engine = ds_engine.build_student(
        student,
        build_optimizer(student, OptimConfig(), 2, fused=False),
        lambda step: 1.0,
        resolve_student(find_ds_config("student_zero2_bf16"), batch, 0.0),
    )

    peak = 0

    def count(*_: object) -> None:
        nonlocal peak
        peak = max(peak, sum(p.numel() for p in cut.parameters()))

    for module in cut.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
            module.register_forward_hook(count)
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        differences = [(engine(images) - whole(images)).abs().max().item() for _ in range(3)]
    held, full = ds_teachers.held_bytes(cut)
    own_whole = sum(p.numel() * p.element_size() for p in whole.parameters())
    facts = {
        "difference": max(differences),
        "held": dist.gather_objects(held),
        "full": full,
        "whole": own_whole,
        "peak_share": peak / sum(p.ds_numel for p in cut.parameters()),
        "linear_untouched": F.linear is linear_before,
        "dtype": str(next(iter(cut.parameters())).ds_tensor.dtype),
        "student_has_ds_id": any(hasattr(p, "ds_id") for p in student_engine.module.parameters()),
    }
    if dist.is_main():
        sys.stdout.write("FACTS " + json.dumps(facts) + "\n")
    ds_engine.stop()


if __name__ == "__main__":
    sys.exit(main())
