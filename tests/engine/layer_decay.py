"""Run by test_layer_decay on every rank: what a step of a real engine does to each layer of a classifier, as JSON."""

import json
import sys

import torch
from torch import nn

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.config.optim import OptimConfig
from dmt_ds.config.schema import StudentConfig
from dmt_ds.downstream.classification import Classifier
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.optim import build_optimizer, learning_rate_schedule
from dmt_ds.models.vit import build_vit, prefer_written_attention
from dmt_ds.models.vit_layers import layer_numbers

OPTIM = OptimConfig(base_lr=0.128, layer_decay=0.5, weight_decay=0.0)
WARMUP_STEPS, TOTAL_STEPS = 4, 8
DEPTH = 3


def classifier() -> nn.Module:
    torch.manual_seed(0)
    section = StudentConfig(patch_size=8, embed_dim=24, depth=DEPTH, num_heads=3, drop_path=0, positions="learned")
    module = Classifier(build_vit(section, 16), 5, "patch_mean")
    prefer_written_attention(module)
    return module


def rates_in(engine: ds_engine.StudentEngine) -> dict[str, float]:
    """Parameter name -> learning rate that DeepSpeed's optimizer, whose groups hold flat parts of them, will apply."""
    optimizer = engine._engine.optimizer
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    return {
        names[id(parameter)]: group["lr"]
        for part, group in zip(optimizer.bit16_groups, optimizer.param_groups, strict=True)
        for parameter in part
    }


def main() -> None:
    torch.set_num_threads(1)
    ds_engine.start(120)
    module = classifier()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    batch = plan_batch(2 * dist.world_size(), 2, dist.world_size())
    engine = ds_engine.build_student(
        module,
        build_optimizer(module, OPTIM, 2, fused=False, layers=layer_numbers(module, module.vit)),
        learning_rate_schedule(OPTIM, 2, WARMUP_STEPS, TOTAL_STEPS),
        resolve_student(find_ds_config("student_zero2_fp32"), batch, 0.0),
    )
    rates = rates_in(engine)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(dist.rank()))
    engine.backward(engine(images, torch.arange(2)).float().log_softmax(1)[:, 0].sum())
    learning_rate = engine.learning_rate
    engine.step()
    # AdamW's first update is its learning rate, up or down, wherever the gradient is not tiny.
    moved = {name: (value - before[name]).abs().median().item() for name, value in module.named_parameters()}
    if dist.is_main():
        facts = {"rates": rates, "moved": moved, "logged": learning_rate, "rates_after": rates_in(engine)}
        sys.stdout.write("FACTS " + json.dumps(facts) + "\n")
    ds_engine.stop()


if __name__ == "__main__":
    main()
