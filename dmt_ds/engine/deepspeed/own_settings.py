"""An engine that loads a checkpoint keeps its own settings: the recipe's, not those of the run that saved.

And its optimizer counts updates as one that never stopped.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer


def torch_optimizer(engine: Any) -> Optimizer:
    """Torch's optimizer inside DeepSpeed's."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)  # type: ignore[no-any-return]


@contextmanager
def settings_kept(engine: Any) -> Iterator[None]:
    """A DeepSpeed engine that loads inside takes weights, moments and the number of updates from the checkpoint.

    Learning rates, decay, betas and clipping stay those that it was built with: a restart may have changed them.
    """
    groups = torch_optimizer(engine).param_groups
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    clipping = getattr(engine.optimizer, "clip_grad", None)
    yield
    if clipping is not None:
        engine.optimizer.clip_grad = clipping
    schedule = engine.lr_scheduler
    schedule.base_lrs = [own["initial_lr"] for own in settings]
    for group, own, factor in zip(torch_optimizer(engine).param_groups, settings, schedule.lr_lambdas, strict=True):
        group.update(own, lr=own["initial_lr"] * factor(schedule.last_epoch))
    schedule.set_decay()


def part_update_counters(optimizer: Optimizer) -> None:
    """Give each of AdamW's states a `step` of its own, where the update reads it.

    A universal checkpoint leaves it on the CPU, which a fused update on a GPU can't read, and with ZeRO-3 one for all,
    which each would count.
    """
    for parameter, state in optimizer.state.items():
        if "step" in state:
            place = parameter.device if optimizer.defaults.get("fused") else "cpu"
            state["step"] = state["step"].to(place, copy=True)
