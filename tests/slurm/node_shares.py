"""Run by test_training as the tasks of a step: what each rank holds of a teacher that is cut within nodes, as JSON."""

import json

import torch

from dmt_ds.config.deepspeed import find_ds_config, resolve_teacher
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine, ds_teachers
from dmt_ds.models.vit import build_vit, tokens_of
from tests import tiny_run


class Tokens(torch.nn.Module):
    """The shape of a teacher: everything through forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = build_vit(tiny_run.TEACHER, 16).eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return tokens_of(self.vit, images)


def main() -> None:
    torch.set_num_threads(1)
    device = ds_engine.start(120)
    config = resolve_teacher(find_ds_config("teacher_zero3_inference_fp32"), tiny_run.TEACHER.embed_dim or 0)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    cut, whole = Tokens(), Tokens()
    engine = ds_teachers.build_teacher(cut, config, device, shard_over="node")
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(dist.rank()))
    with torch.no_grad():
        difference = (engine(images) - whole(images)).abs().max().item()
    held, full = ds_teachers.held_bytes(cut)
    facts = dist.gather_objects({"share": held / full, "difference": difference, "local": dist.local_world_size()})
    if dist.is_main():
        print("FACTS " + json.dumps(facts))
    ds_engine.stop()


if __name__ == "__main__":
    main()
