"""Weights that stay as they start for the first share of a run, as if the optimizer got them later; knows no method.

Whoever clears such gradients before the update, as DINO's authors do, has AdamW start with these weights when they are
let go. ZeRO has reduced zeros by then, which AdamW takes for gradients: it would count the updates, and take averages
that are still empty for grown; after many, the first real ones would move the weights three to six times as far.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

from dmt_ds.engine.task import Progress

HELD_SHARE = "held_share"
"""Key of a parameter group that is held back: until which share of the run."""

Schedule = Callable[[int], float]


def schedules(optimizer: Optimizer, schedule: Schedule, total_steps: int) -> list[Schedule]:
    """Each group's own factor of its learning rate: 0 while it is held back, which keeps the weights from decay too."""

    def held(share: float) -> Schedule:
        return lambda step: (
            0.0 if step < total_steps and Progress(step, total_steps).fraction < share else schedule(step)
        )

    shares: Sequence[float] = [group.get(HELD_SHARE, 0.0) for group in optimizer.param_groups]
    return [held(share) if share else schedule for share in shares]


def forget_held_updates(optimizer: Optimizer) -> None:
    """Have AdamW count no update of a group while it is held back; its moments stay 0 by themselves."""

    def forget(of: Optimizer, *_arguments: Any) -> None:
        for group in of.param_groups:
            if HELD_SHARE in group and group["lr"] == 0:
                for parameter in group["params"]:
                    if "step" in of.state[parameter]:
                        of.state[parameter]["step"].zero_()

    optimizer.register_step_post_hook(forget)
