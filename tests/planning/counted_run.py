"""Run by test_counts on every rank: bytes that engines really hold and send, beside the formulas; as JSON."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

sent: Counter[str] = Counter()


def count(name: str, share: Callable[[int], float], position: int) -> None:
    """Have a collective add up the bytes that a rank of a ring sends; `position` is of the argument that is whole."""
    plain = getattr(torch_dist, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        whole: Tensor = args[position] if len(args) > position else next(iter(kwargs.values()))
        ranks = torch_dist.get_world_size(kwargs.get("group"))
        sent[name] += round(share(ranks) * whole.numel() * whole.element_size())
        return plain(*args, **kwargs)

    setattr(torch_dist, name, counted)


count("all_reduce", lambda n: 2 * (n - 1) / n, 0)
for whole_is_first in ("reduce", "broadcast", "all_gather_into_tensor"):
    count(whole_is_first, lambda n: (n - 1) / n, 0)
count("reduce_scatter_tensor", lambda n: (n - 1) / n, 1)

# DeepSpeed remembers torch's functions when it is imported: only now.
from dmt_ds.config.batch import plan_batch  # noqa: E402
from dmt_ds.config.deepspeed import find_ds_config, resolve_student, resolve_teacher  # noqa: E402
from dmt_ds.config.optim import OptimConfig  # noqa: E402
from dmt_ds.config.schema import StudentConfig  # noqa: E402
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from dmt_ds.engine import dist  # noqa: E402
from dmt_ds.engine.deepspeed import ds_engine, ds_teachers  # noqa: E402
from dmt_ds.engine.optim import build_optimizer  # noqa: E402
from dmt_ds.models.encoders import EncoderRecord, FrozenEncoder  # noqa: E402
from dmt_ds.models.student import Student  # noqa: E402
from dmt_ds.models.vit import build_vit, shape_of  # noqa: E402
from dmt_ds.planning import memory  # noqa: E402
from dmt_ds.planning.layout import Cluster, Layout  # noqa: E402
from dmt_ds.planning.traffic import step_traffic  # noqa: E402
from dmt_ds.planning.vit_cost import AdapterSize, VitSize  # noqa: E402

ACCUMULATION = 2
TEACHER, STUDENT = VitSize(48, 2, 4, 16), VitSize(32, 2, 4, 16)


def section(size: VitSize) -> StudentConfig:
    return StudentConfig(
        patch_size=size.patch_size, embed_dim=size.embed_dim, depth=size.depth, num_heads=2, drop_path=0.0
    )


def teacher() -> FrozenEncoder:
    vit = build_vit(section(TEACHER), TEACHER.image_size)
    return FrozenEncoder(vit, EncoderRecord("random", "none", shape_of(vit), IMAGENET_MEAN, IMAGENET_STD))


def facts_of(stage: int) -> dict[str, Any]:
    """Two teachers and a student of this ZeRO stage; the second update is counted."""
    device, ranks = torch.device("cpu"), dist.world_size()
    sent.clear()
    config = resolve_teacher(find_ds_config("teacher_zero3_inference"), TEACHER.embed_dim)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    models = [teacher() for _ in range(2)]
    teachers = [ds_teachers.build_teacher(model, config, device, shard_over="world") for model in models]
    student = Student(build_vit(section(STUDENT), STUDENT.image_size), {"fused": TEACHER.embed_dim})
    batch = plan_batch(ACCUMULATION * 2 * ranks, 2, ranks)
    ds_config = resolve_student(find_ds_config(f"student_zero{stage}_bf16"), batch, 0.0)
    optimizer = build_optimizer(student, OptimConfig(), batch.global_batch_size, fused=False)
    engine = ds_engine.build_student(student, optimizer, lambda step: 1.0, ds_config)
    images = torch.randint(0, 256, (2, 3, TEACHER.image_size, TEACHER.image_size), dtype=torch.uint8)
    forwards: list[int] = []
    for _ in range(2):
        sent.clear()
        forwards.clear()
        for _ in range(ACCUMULATION):
            before = sum(sent.values())
            with torch.no_grad():
                target = sum(forward(images).float() for forward in teachers)
            forwards.append(sum(sent.values()) - before)
            tokens = engine(images.float(), torch.arange(2))["fused"]
            engine.backward((tokens.float() - target).square().mean())
            engine.step()
    width = TEACHER.embed_dim
    adapters = (AdapterSize(STUDENT.embed_dim, width),)
    layout = Layout(
        {"a": TEACHER, "b": TEACHER}, STUDENT, (width,), adapters, 2, ds_config, ranks > 1, ranks if ranks > 1 else 1
    )
    moments = [value for state in optimizer.state.values() for value in state.values() if value.numel() > 1]
    traffic = step_traffic([layout], Cluster(1, ranks), ACCUMULATION)
    states = memory.state_bytes([layout], ranks)
    return {
        "teachers": [sum(ds_teachers.held_bytes(model)[0] for model in models), states["teachers' weights"]],
        "moments": [sum(m.numel() * m.element_size() for m in moments), states["AdamW's moments"]],
        "masters": [sum(m.numel() * 4 for m in moments) / 2, states["float32 masters"]],
        "trained": [sum(p.numel() for p in student.parameters() if p.requires_grad), layout.trained_parameters],
        "sent by teachers": [sum(forwards), traffic.teachers],
        "sent by student": [sum(sent.values()) - sum(forwards), traffic.gradient + traffic.weights],
        "detail": dict(sent),
    }


def main() -> None:
    torch.set_num_threads(1)
    ds_engine.start(120)
    facts = {stage: facts_of(stage) for stage in (1, 2)}
    if dist.is_main():
        print("FACTS " + json.dumps(facts), flush=True)
    ds_engine.stop()


if __name__ == "__main__":
    main()
