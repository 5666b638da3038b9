"""Run by test_ds_engine on every rank: facts about a ViT-B cut by ZeRO-3 beside a ZeRO-2 student, as JSON."""

import json
import os
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student, resolve_teacher
from dmt_ds.config.optim import OptimConfig
from dmt_ds.config.schema import StudentConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine, ds_teachers
from dmt_ds.engine.optim import build_optimizer
from dmt_ds.models.encoders import EncoderRecord, FrozenEncoder
from dmt_ds.models.product_sums import add_in_products
from dmt_ds.models.relations import RelationEncoder, last_qkv
from dmt_ds.models.vit import build_vit, shape_of

TIMEOUT_SECONDS = 4321


def teacher(arch: str = "vit_base") -> FrozenEncoder:
    torch.manual_seed(0)
    vit = build_vit(StudentConfig(arch=arch, drop_path=0.0), 224)
    return FrozenEncoder(vit, EncoderRecord("random", "none", shape_of(vit), IMAGENET_MEAN, IMAGENET_STD))


def relation_facts(images: Tensor, device: torch.device) -> dict[str, object]:
    """A ViT-T that gives its last block's queries, keys and values: cut over ranks, and whole as it was built."""
    config = resolve_teacher(find_ds_config("teacher_zero3_inference"), 192)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    cut, whole = RelationEncoder(teacher("vit_tiny")), teacher("vit_tiny").to(device, torch.bfloat16)
    engine = ds_teachers.build_teacher(cut, config, device, shard_over="world")
    with torch.no_grad():
        qkv, expected = engine(images), last_qkv(whole.vit, whole.normalised(images))
    held, full = ds_teachers.held_bytes(cut)
    return {
        "relation_difference": (qkv - expected).abs().max().item(),
        "relation_size": expected.abs().mean().item(),
        "relation_shape": list(qkv.shape),
        "relation_held_share": held / full,
    }


def compiled_facts(images: Tensor, device: torch.device) -> dict[str, object]:
    """A ViT-T cut over ranks and compiled inside its blocks, two whole ones compiled in one piece, and a plain one."""
    config = resolve_teacher(find_ds_config("teacher_zero3_inference_fp32"), 192)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    cut = ds_teachers.build_teacher(
        teacher("vit_tiny"), config, device, shard_over="world", compile_backend="aot_eager"
    )
    whole, another = (
        ds_teachers.replicate_teacher(teacher("vit_tiny"), config, device, compile_backend="aot_eager")
        for _ in range(2)
    )
    plain = ds_teachers.replicate_teacher(teacher("vit_tiny"), config, device)
    with torch.no_grad():
        expected = plain(images)
        differences = [(made(images) - expected).abs().max().item() for made in (cut, cut, whole, another)]
    counters = torch._dynamo.utils.counters
    return {
        "compiled_differences": differences,
        "compiled_graphs": counters["stats"]["unique_graphs"],
        "compiled_breaks": sum(counters["graph_break"].values()),
    }


def summing_facts(images: Tensor, device: torch.device) -> dict[str, object]:
    """A ViT-T whose blocks add in their products, cut over ranks and whole, beside one as timm has it."""
    config = resolve_teacher(find_ds_config("teacher_zero3_inference_fp32"), 192)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    plain, cut, whole = (teacher("vit_tiny") for _ in range(3))
    for model in (plain, cut, whole):
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # which a new ViT has at 0
                torch.nn.init.normal_(parameter, std=0.3)
    for model in (cut, whole):
        add_in_products(model.vit)
    with torch.no_grad():
        expected = plain.to(device)(images)
        made = (
            ds_teachers.build_teacher(cut, config, device, shard_over="world")(images),
            ds_teachers.replicate_teacher(whole, config, device)(images),
        )
    held, full = ds_teachers.held_bytes(cut)
    return {
        "summing_differences": [(tokens - expected).abs().max().item() for tokens in made],
        "summing_equal": torch.equal(*made),
        "summing_held_share": held / full,
    }


def group_timeouts() -> list[float]:
    """Seconds that the collectives of each group wait: of all that engines made, and of those of a node."""
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    ds_teachers.shard_group("node")
    dist.barrier()  # rank 0 keeps the store that the other's group is made through
    groups = torch.distributed.distributed_c10d._world.pg_map
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]


def main() -> None:
    torch.set_num_threads(1)
    device = ds_engine.start(TIMEOUT_SECONDS)
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
        **relation_facts(images, device),
        **compiled_facts(images, device),
        **summing_facts(images, device),
        "group_timeouts": group_timeouts(),
    }
    if dist.is_main():
        sys.stdout.write("FACTS " + json.dumps(facts) + "\n")
    ds_engine.stop()


if __name__ == "__main__":
    sys.exit(main())
