"""Learning rate and weight decay of each parameter group by the number of updates; knows no recipe."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

ByStep = Callable[[int], float]
"""From the number of updates that are done."""
_OF_THE_RECIPE = ("_decay", "_decays")


class Schedule(LambdaLR):
    """torch's `LambdaLR`, which may set the weight decay as well."""

    def __init__(self, optimizer: Optimizer, factors: ByStep | list[ByStep], decay: ByStep | None = None) -> None:
        """Set what the first update takes.

        Args:
            factors: of each group's learning rate; one for all, or one a group.
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
