"""Run by test_gradient_order on two ranks: one of them runs the student's layers in another order, and compiles."""

import json
import logging
import sys

import torch
from torch import nn

from dmt_ds.commands.training import compiling
from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.errors import DmtError


class TwoWays(nn.Module):
    """The same sum, one term before the other."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.first, self.second, self.turned = nn.Linear(4, 4), nn.Linear(4, 4), turned

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.turned:
            return self.second(images) + self.first(images)
        return self.first(images) + self.second(images)


def error_of(turned: bool) -> str:
    torch.manual_seed(0)
    module = TwoWays(turned)
    config = resolve_student(find_ds_config("student_zero2_fp32"), plan_batch(4, 2, 2), 0.0)
    engine = ds_engine.build_student(module, torch.optim.AdamW(module.parameters()), lambda step: 1.0, config)
    try:
        engine.backward(engine(torch.ones(2, 4)).sum())
        engine.backward(engine(torch.ones(2, 4)).sum())  # looked at once
    except DmtError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    device = ds_engine.start(60)
    compiling.obstacle_to_triton = lambda device: "no C compiler" if dist.rank() == 1 else None
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    facts = {
        "compiles": compiling.compiles(True, "student", device),
        "alike": error_of(turned=True),
        "unlike": error_of(turned=dist.rank() == 1),
    }
    gathered = dist.gather_objects(facts)
    if dist.is_main():
        print("FACTS " + json.dumps(gathered))
    ds_engine.stop()


if __name__ == "__main__":
    main()
