"""Learning rate and weight decay of each parameter group by the number of updates; knows no recipe."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dmt_ds.engine.task import Progress

ByStep = Callable[[int], float]
"""A function of the number of updates that are done."""
FROZEN_UNTIL = "frozen_until"
"""Key of a parameter group that is frozen at first: until which share of the run."""
_OF_THE_RECIPE = ("_decay", "_decays")


def with_frozen_groups(optimizer: Optimizer, factor: ByStep, total_steps: int) -> list[ByStep]:
    """Each group's own factor of its learning rate: 0 as long as it is frozen, which keeps it from decay too.

    Its gradient is kept, so AdamW's moments are warm when it is unfrozen. Zeros in its place would leave them empty
    while the updates are counted: the first steps would then be several times as large as the rate says.
    """

    def of(frozen_until: float) -> ByStep:
        def frozen_at_first(step: int) -> float:
            is_frozen = step < total_steps and Progress(step, total_steps).fraction < frozen_until
            return 0.0 if is_frozen else factor(step)

        return frozen_at_first if frozen_until else factor

    return [of(group.get(FROZEN_UNTIL, 0.0)) for group in optimizer.param_groups]


class RateAndDecay(LambdaLR):
    """torch's `LambdaLR`, which may set the weight decay as well."""

    def __init__(self, optimizer: Optimizer, factors: ByStep | list[ByStep], decay: ByStep | None = None) -> None:
        """Set what the first update takes.

        Args:
            factors: of each group's learning rate; one for all, or one per group.
            decay: weight decay of the groups that have some; None leaves it as it is.
        """
        self._decay = decay
        self._decays = [group["weight_decay"] > 0 for group in optimizer.param_groups]
        super().__init__(optimizer, factors)

    def step(self, epoch: int | None = None) -> None:
        """Set what the next update takes."""
        super().step(epoch)
        self.set_decay()

    def set_decay(self) -> None:
        """Give groups the decay of the present step, also after somebody gave them another."""
        if self._decay is None:
            return
        for group, decays in zip(self.optimizer.param_groups, self._decays, strict=True):
            if decays:
                group["weight_decay"] = self._decay(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: how far it is, not what the recipe says."""
        return {key: value for key, value in super().state_dict().items() if key not in _OF_THE_RECIPE}
